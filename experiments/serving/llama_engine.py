"""llama.cpp, the library inside xllamacpp: token ids, logits, greedy tokens and times of a GGUF file."""

import ctypes as c
import time
from functools import cache
from pathlib import Path

import numpy as np
import xllamacpp

NUMBERS = (
    "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq n_threads n_threads_batch"
)
KINDS = "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"
FLOATS = "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"


class ContextParams(c.Structure):
    """llama_context_params; what follows the cache's types is left as it is."""

    _fields_ = [
        *((name, c.c_int32) for name in NUMBERS.split()),
        *((name, c.c_int32) for name in KINDS.split()),
        *((name, c.c_float) for name in FLOATS.split()),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("rest", c.c_byte * 256),
    ]


class ModelParams(c.Structure):
    _fields_ = [("all", c.c_byte * 256)]


class Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
SAID: list[str] = []


@LOG
def log(_level, text, _data):
    SAID.append(text.decode(errors="replace"))


@cache
def library():
    (path,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    lib = c.CDLL(str(path))
    for name in ("model_load_from_file", "init_from_model", "model_get_vocab", "get_logits", "get_memory"):
        getattr(lib, f"llama_{name}").restype = c.c_void_p
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_batch_init.restype = Batch
    lib.llama_model_load_from_file.argtypes = [c.c_char_p, ModelParams]
    lib.llama_init_from_model.argtypes = [c.c_void_p, ContextParams]
    lib.llama_decode.argtypes = [c.c_void_p, Batch]
    lib.llama_batch_free.argtypes = [Batch]
    lib.llama_tokenize.argtypes = [
        c.c_void_p,
        c.c_char_p,
        c.c_int32,
        c.c_void_p,
        c.c_int32,
        c.c_bool,
        c.c_bool,
    ]
    for name in ("model_get_vocab", "get_memory", "get_logits", "free", "model_free", "vocab_n_tokens"):
        getattr(lib, f"llama_{name}").argtypes = [c.c_void_p]
    lib.llama_memory_clear.argtypes = [c.c_void_p, c.c_bool]
    lib.llama_log_set.argtypes = [LOG, c.c_void_p]
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    return lib


class Engine:
    """A GGUF file, loaded. Its cache of keys and values is in float32."""

    def __init__(self, path, context=512, threads=1):
        SAID.clear()
        lib = self.lib = library()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise ValueError("".join(line for line in SAID if "rror" in line or "fail" in line))
        params = lib.llama_context_default_params()
        assert (params.type_k, params.type_v) == (1, 1), (
            "llama.cpp changed its parameters: look at its header"
        )
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = 0
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError("".join(SAID[-4:]))
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.rows = lib.llama_vocab_n_tokens(self.vocab)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def ids(self, text):
        """The tokens of a text, with what the file says comes before and after it."""
        raw = text.encode()
        room = (c.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), room, len(room), True, True)
        return list(room[:count])

    def logits(self, ids):
        """[tokens, vocabulary]"""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self.further(ids, 0)

    def further(self, ids, start, only_last=False):
        """Read tokens that stand from position `start` on. Returns logits. [tokens or 1, vocabulary]"""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at] = int(token), start + at
            batch.logits[at] = not only_last or at == len(ids) - 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        assert self.lib.llama_decode(self.context, batch) == 0
        found = c.cast(self.lib.llama_get_logits(self.context), c.POINTER(c.c_float))
        made = np.ctypeslib.as_array(found, (1 if only_last else len(ids), self.rows)).copy()
        self.lib.llama_batch_free(batch)
        return made

    def greedy(self, ids, count):
        """The next tokens, each the most probable one."""
        last, said = self.logits(ids)[-1], []
        for _ in range(count):
            said.append(int(last.argmax()))
            last = self.further(said[-1:], len(ids) + len(said) - 1)[-1]
        return said

    def seconds(self, prompt, count):
        """Return the seconds that reading a prompt and writing `count` tokens after it take."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        start = time.perf_counter()
        last = self.further(prompt, 0, only_last=True)[-1]
        read = time.perf_counter()
        for at in range(count):
            last = self.further([int(last.argmax())], len(prompt) + at, only_last=True)[-1]
        return read - start, time.perf_counter() - read
