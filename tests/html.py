"""Read a page as a browser reads it."""

import json
from html.parser import HTMLParser


def data_of(html):
    """The data of a page, found as a browser finds it: the text of the element until the first </script."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            self.inside = dict(attrs).get("id") == "data"

        def handle_data(self, text):
            if getattr(self, "inside", False):
                found.append(text)
                self.inside = False

    Reader().feed(html)
    return json.loads("".join(found))
