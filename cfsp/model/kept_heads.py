"""Kept heads: T5's attentions after some heads went, which read their share of a bias that blocks pass on.

The modelling file of a checkpoint contains this file after `modeling_pruned`.
"""


class KeptHeads:
    """Mixin for an attention of T5 that lost heads: it adds the bias of the heads that are left.

    The first block makes the bias of all heads, and the later blocks add the same one. So the whole
    bias is passed on, whatever a block lost.

    kept: indices of the heads that are left. before: number of heads that the bias has.
    """

    kept: list[int]
    before: int

    def compute_bias(self, *args, **kwargs):
        """Return the bias of the heads that are left. [1, heads, tokens, seen]"""
        self.__dict__["whole"] = super().compute_bias(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]  # T5's
        return self.__dict__["whole"][:, self.kept]

    def forward(self, hidden_states, *args, position_bias=None, **kwargs):
        """[batch, tokens, hidden] -> the same shape, the bias of all heads, the attention weights"""
        own = None if position_bias is None else position_bias[:, self.kept]
        given = super().forward  # pyright: ignore[reportAttributeAccessIssue]  # T5's
        output, used, weights = given(hidden_states, *args, position_bias=own, **kwargs)
        if position_bias is None:  # without a bias of its own, T5 makes zeros
            zeros = used.new_zeros(1, self.before, *used.shape[2:])
            position_bias = self.__dict__.pop("whole", zeros)
        return output, position_bias, weights

    def __reduce__(self):
        return kept_heads, (type(self).__bases__[1],), self.__dict__


def kept_heads(attention):
    """Make an empty `KeptHeads` that is also an `attention`. Unpickling fills it."""
    kind = type("KeptHeads", (KeptHeads, attention), {})
    return kind.__new__(kind)


def keep_heads(attention, heads):
    """Make a T5 attention read the bias of only these of its heads. Call it before the heads go."""
    if not isinstance(attention, KeptHeads):
        attention.kept, attention.before = [*range(attention.n_heads)], attention.n_heads
        attention.__class__ = type("KeptHeads", (KeptHeads, type(attention)), {})
    attention.kept = [attention.kept[head] for head in heads]
