"""Model folders of other tools: read and written in the layout of the Hugging Face hub and of PEFT."""

from minirlhf.pretrained.adapter_files import load_adapter, save_adapter
from minirlhf.pretrained.saving import save_pretrained
from minirlhf.pretrained.weights import load_policy, load_pretrained, load_reward_model
