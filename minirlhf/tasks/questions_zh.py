"""`questions_zh`: technical questions and answers in Chinese, from a small grammar over a table of facts.

    question := [POLITE] (definition | layer | trait | use | difference)
    answer   := the facts that the question asks for, in one or two sentences

Every answer is true, because it is made of the table's facts. The wrong answer of a pair has a fact of another term,
stops early, or answers another question about the same term.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Term(NamedTuple):
    """An idea of computing."""

    kind: str  # of its field
    trait: str  # after 特点是
    use: str  # after 常用于


TERMS = {
    "TCP": Term("面向连接的传输层协议", "按序交付、丢失的数据会重传", "网页浏览、文件传输和电子邮件"),
    "UDP": Term("无连接的传输层协议", "开销小、延迟低，但不保证送达", "视频通话、在线游戏和域名查询"),
    "HTTP": Term("应用层协议", "采用请求与响应的方式，本身没有状态", "浏览器与网站服务器之间的通信"),
    "DNS": Term("把域名翻译成 IP 地址的系统", "分层管理，并使用缓存", "访问网站之前查找服务器的地址"),
    "数组": Term(
        "在内存中连续存放元素的数据结构", "按下标访问只需常数时间，在中间插入较慢", "元素个数固定、要随机访问的场合"
    ),
    "链表": Term("用指针连接节点的数据结构", "已知位置时插入和删除很快，不能按下标直接访问", "元素经常增减的场合"),
    "哈希表": Term("按键的哈希值存放数据的数据结构", "平均查找时间是常数，键没有顺序", "字典、缓存和去重"),
    "栈": Term("后进先出的数据结构", "只在一端放入和取出", "函数调用、括号匹配和撤销操作"),
    "队列": Term("先进先出的数据结构", "从一端放入，从另一端取出", "任务排队和广度优先搜索"),
    "二分查找": Term("在有序序列中查找的算法", "每一步排除一半的元素，时间是对数级", "有序数组的快速查找"),
    "归并排序": Term("基于分治的排序算法", "稳定，最坏情况下也是 n log n，要额外空间", "外部排序和需要稳定性的排序"),
    "快速排序": Term("基于划分的排序算法", "平均很快，最坏情况下时间是平方级", "内存中的一般排序"),
    "进程": Term("操作系统分配资源的基本单位", "拥有独立的地址空间，切换开销较大", "彼此隔离地运行不同的程序"),
    "线程": Term("操作系统调度执行的基本单位", "共享所属进程的内存，切换开销较小", "在一个程序里同时做几件事"),
    "死锁": Term("几个线程互相等待对方资源的状态", "没有外力就不会结束", "说明为什么加锁要有固定的顺序"),
    "索引": Term("帮助数据库快速查找的数据结构", "加快查询，但占用空间并减慢写入", "经常作为查询条件的列"),
    "事务": Term("数据库中不可分割的一组操作", "要么全部成功，要么全部撤销", "转账和下单这类不能只做一半的操作"),
    "Git": Term("分布式版本控制系统", "每个人都有完整的历史，分支很轻便", "多人协作开发软件"),
    "容器": Term("与其他程序隔离的运行环境", "与主机共享内核，启动快", "部署和扩展网络服务"),
    "虚拟机": Term("用软件模拟的完整计算机", "有自己的操作系统，隔离性强但启动较慢", "在一台主机上运行不同的操作系统"),
    "过拟合": Term("模型只记住训练数据的现象", "训练误差小，而新数据上的误差大", "解释为什么要保留验证集"),
    "梯度下降": Term("沿梯度的反方向更新参数的优化方法", "每步只需一阶导数，步长由学习率决定", "训练神经网络"),
    "正则化": Term("限制模型复杂度的方法", "用偏差的少量增加换取方差的减小", "减轻过拟合"),
    "编译器": Term("把源代码翻译成目标代码的程序", "在运行之前发现许多错误，并优化代码", "C、C++ 和 Rust 程序的构建"),
}
POLITE = ["", "请问，", "你好，", "我是初学者，", "面试题：", "请简单回答："]
ASKED = {
    "definition": ["{0}是什么？", "什么是{0}？", "请解释一下{0}。"],
    "trait": ["{0}有什么特点？", "{0}的主要特点是什么？"],
    "use": ["{0}用在哪里？", "{0}常用于什么场合？"],
    "difference": ["{0}和{1}有什么区别？", "请比较{0}与{1}。"],
}
HELD_OUT_EVERY = 10  # every tenth question is never trained on


def all_questions() -> list[dict]:
    """Every question: {prompt, about: names of terms, asks: a key of ASKED}, in a fixed shuffled order."""
    found = []
    for name in TERMS:
        for asks, forms in ASKED.items():
            partners = [other for other in TERMS if other != name] if asks == "difference" else [""]
            for partner in partners:
                about = [name, partner] if partner else [name]
                found += [
                    {"prompt": polite + form.format(*about), "about": about, "asks": asks}
                    for polite in POLITE
                    for form in forms
                ]
    random.Random("questions_zh").shuffle(found)
    return found


def answer(about: list[str], asks: str, facts: dict[str, Term] = TERMS) -> str:
    """The answer made of the terms' facts."""
    first = facts[about[0]]
    if asks == "difference":
        return "".join(f"{name}是{facts[name].kind}，特点是{facts[name].trait}。" for name in about)
    return {
        "definition": f"{about[0]}是{first.kind}。它的特点是{first.trait}。",
        "trait": f"{about[0]}的特点是{first.trait}。",
        "use": f"{about[0]}常用于{first.use}。",
    }[asks]


def questions(held_out: bool = False) -> list[dict]:
    return [question for i, question in enumerate(all_questions()) if (i % HELD_OUT_EVERY == 0) == held_out]


def sft_rows(n: int, seed: int) -> list[dict]:
    """n rows {prompt, response}: different questions as long as there are enough."""
    rng, found = random.Random(f"questions_zh sft {seed}"), questions()
    chosen = rng.sample(found, min(n, len(found))) + rng.choices(found, k=max(0, n - len(found)))
    return [{"prompt": row["prompt"], "response": answer(row["about"], row["asks"])} for row in chosen]


def preference_rows(n: int, seed: int, *, held_out: bool = False) -> list[dict]:
    """n rows {prompt, chosen, rejected}: chosen is right, rejected is wrong or cut off."""
    rng, found = random.Random(f"questions_zh pairs {seed} {held_out}"), questions(held_out)
    rows = []
    for row in rng.choices(found, k=n):
        right = answer(row["about"], row["asks"])
        rows.append({"prompt": row["prompt"], "chosen": right, "rejected": _wrong(rng, row, right)})
    return rows


def _wrong(rng: random.Random, row: dict, right: str) -> str:
    match rng.randrange(3):
        case 0:  # the facts of another term under the name of this term
            other = rng.choice([name for name in TERMS if name not in row["about"]])
            return answer(row["about"], row["asks"], {**TERMS, row["about"][0]: TERMS[other]})
        case 1:
            return right[: rng.randrange(len(row["about"][0]), len(right) - 1)]
        case _:
            asks = rng.choice([name for name in ("definition", "trait", "use") if name != row["asks"]])
            return answer(row["about"], asks)
