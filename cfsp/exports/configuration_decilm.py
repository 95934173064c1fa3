"""The config of a DeciLM: Llama's, and what every block has.

A checkpoint contains this file as its remote code, so it imports only transformers.
"""

from transformers import LlamaConfig


class BlockPart(dict):
    """A part of a block: its keys are attributes too, as vLLM reads them."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(LlamaConfig):
    """block_configs: for each block, `attention` with n_heads_in_group and `ffn` with intermediate_size."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **options):
        self.block_configs = [
            BlockPart({name: BlockPart(part) for name, part in block.items()}) for block in block_configs
        ]
        super().__init__(**options)
