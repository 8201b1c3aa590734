"""Images in the prompt: a decoder that reads patches, its folder, rows with images, drawn scenes with questions."""

from minirlhf.extras.vision.encoder import VisionConfig
from minirlhf.extras.vision.files import load_vision
from minirlhf.extras.vision.images import read_image
from minirlhf.extras.vision.model import VisionModel, VisionPolicy
from minirlhf.extras.vision.rows import encode_image_rows, marked, read_image_rows, with_image_mark
