"""LoRA adapters, frozen weights in 4 bits, and the choice of modules by pattern."""

from minirlhf.adapters.lora import LoRAConfig, adapter_names, adapter_view, apply_lora, merge_lora, reference_of
from minirlhf.adapters.quantised import memory_report, plain, quantise_linears
from minirlhf.adapters.select import count_parameters, freeze
