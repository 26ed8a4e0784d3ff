"""libringattn against jax.nn.dot_product_attention and its automatic gradients.

Each case is one problem on P ranks (threads of this process): the same tensors go through the C API and through JAX, and
out, lse, dq, dk and dv are compared under the tolerance rule

    error(ours) <= 2 * max(error(plain), unit roundoff)       in max norm, relative to max|exact|

where exact is JAX in float64 and plain is JAX in the tensors' own dtype, both on the same rounded inputs. lse is always fp32,
so its plain computation is JAX in float32. The unit roundoff is that of the dtype in which the result is stored: nobody who
stores it there can promise more.

error(plain) is the largest over all cases of a dtype: in one small case alone a few elements make the norm, which is luck.

JAX keeps its probabilities for the gradients, whereas ra_backward is given lse, rounded to fp32, and makes them again as in
FlashAttention. An element that depends on one large score loses more by that than by anything else, in any implementation, so
a plain computation of the gradients from lse is made too (gradients_from_lse, also by automatic differentiation), and the
larger of the two errors counts.

Rows that see no key are held to the letter of the API instead: out 0, lse -infinity, gradient 0; JAX gives such rows the mean
of all values, so its gradients are taken with dout 0 there.

Each group meets two of the shardings in each dtype and world size, or all four with RINGATTN_TEST_FULL=1. Prints one line per
group of cases and the count of cases. Exit status 1 if a case fails.
"""

import argparse
import contextlib
import os
import sys
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import ringattn_ctypes

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_disable_most_optimizations", True)  # cases are small: compiling them is what takes time

BATCH, HEAD_DIM = 2, 16
UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


# ---------------------------------------------------------------- JAX


@contextlib.contextmanager
def softmax_in_float64():
    """dot_product_attention casts its scores to np.float32 whatever the inputs are; in here that name means float64."""
    module = sys.modules["jax._src.nn.functions"]

    class Numpy:
        float32 = np.float64

        def __getattr__(self, name):
            return getattr(np, name)

    module.np = Numpy()
    try:
        yield
    finally:
        module.np = np


def check_that_exact_is_exact():
    """The float64 path against the textbook in longdouble, on one small problem."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 5, 1, 4)) for _ in range(3))
    out, lse = (np.asarray(x) for x in attention(np.dtype(np.float64), {})(q, k, v, None))
    scores = np.einsum("bthd,bshd->bhts", q.astype(np.longdouble), k) / 2
    exact_lse = np.log(np.exp(scores).sum(-1))
    exact_out = np.einsum("bhts,bshd->bthd", np.exp(scores - exact_lse[..., None]), v)
    worst = max(np.abs(out - exact_out).max(), np.abs(lse - exact_lse.transpose(0, 2, 1)).max())
    if worst > 1e-14:
        sys.exit(f"JAX's float64 attention is off by {worst}: jax_oracle.py does not fit jax {jax.__version__}")


def attention(dtype, options):
    """(q, k, v, mask) -> (out, lse) in `dtype`."""

    def function(q, k, v, mask):
        with softmax_in_float64() if dtype == np.float64 else contextlib.nullcontext():
            return jax.nn.dot_product_attention(q, k, v, mask=mask, return_residual=True, **options)

    return function


compiled = {}


def run_jax(dtype, problem, q, k, v, dout):
    """out, lse, dq, dk, dv as float64."""
    key = (dtype, str(problem.options))
    if key not in compiled:

        def both_ways(q, k, v, dout, mask):
            function = attention(dtype, problem.options)
            out, pull_back, lse = jax.vjp(lambda *inputs: function(*inputs, mask), q, k, v, has_aux=True)
            return out, lse, *pull_back(dout)

        compiled[key] = jax.jit(both_ways)
    results = compiled[key](*(x.astype(dtype) for x in (q, k, v, dout)), problem.mask)
    return dict(zip(("out", "lse", "dq", "dk", "dv"), (np.asarray(x).astype(np.float64) for x in results)))


@jax.jit
def gradients_from_lse(q, k, v, out, lse, dout, sees):
    """dq, dk, dv where the probabilities are exp(score - lse) with lse and out given: what ra_backward has to start from.

    The gradient of softmax(s) v at a row is that of p v - sum(p) out, with p = exp(s - lse) and out and lse held fixed.
    """

    def attend(q, k, v):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * np.float32(HEAD_DIM**-0.5)
        p = jnp.where(sees[:, None], jnp.exp(jnp.where(sees[:, None], scores, 0) - lse.transpose(0, 2, 1)[..., None]), 0)
        return jnp.einsum("bhts,bshd->bthd", p, v) - p.sum(-1).transpose(0, 2, 1)[..., None] * out

    return dict(zip(("dq", "dk", "dv"), jax.vjp(attend, q, k, v)[1](dout)))


# ---------------------------------------------------------------- libringattn


def tensor(api, array):
    """[batch, seq, head, dim] as an ra_tensor."""
    strides = [stride // array.itemsize for stride in array.strides[:3]]
    return api.ra_tensor(array.ctypes.data, *strides)


class Ranks:
    """The ranks of one world size. Their contexts live until destroy()."""

    def __init__(self, api, world_size):
        self.api, self.world_size = api, world_size
        self.contexts = [None] * world_size
        unique_id = api.ra_unique_id()
        api.call("ra_create_unique_id", unique_id, api.RA_TRANSPORT_LOCAL, None)

        def create(rank):
            config = api.make("ra_context_config", rank=rank, world_size=world_size, unique_id=unique_id.text,
                              num_threads=1, timeout_ms=60000)
            self.contexts[rank] = api.call("ra_create_context", config)

        self.on_each_rank(create)

    def on_each_rank(self, body):
        failures = []

        def guarded(rank):
            try:
                body(rank)
            except Exception as exception:
                failures.append(f"rank {rank} of {self.world_size}: {exception}")

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError("; ".join(failures))

    def destroy(self):
        for context in self.contexts:
            self.api.functions.ra_destroy_context(context)

    def run(self, desc, q, k, v, dout, key_bias=None, sinks=None):
        """out, lse [batch, seq, head], dq, dk, dv of the whole sequence as float64, and with sinks dsinks."""
        api, dtype = self.api, q.dtype
        whole = {"q": q, "k": k, "v": v, "dout": dout}
        for name, like in (("out", q), ("dq", q), ("dk", k), ("dv", v)):
            whole[name] = np.full(like.shape, np.nan, dtype)
        lse = np.full((q.shape[0], q.shape[2], q.shape[1]), np.nan, np.float32)
        has_sinks = sinks is not None and sinks.size > 0
        dsinks = np.full((self.world_size, *sinks.shape), np.nan, np.float32) if has_sinks else None  # of each rank

        def compute(rank):
            sides = {name: api.RA_SIDE_KEY_VALUE if name in ("k", "v", "dk", "dv") else api.RA_SIDE_QUERY for name in whole}
            shard = {}
            for name, array in whole.items():
                n = api.call("ra_get_shard_length", desc, self.world_size, rank, sides[name])
                shard[name] = np.full((array.shape[0], n, *array.shape[2:]), np.nan, dtype)
            shard_lse = np.full((*lse.shape[:2], shard["q"].shape[1]), np.nan, np.float32)

            def copy(function, name):
                args = api.make("ra_sequence_args", side=sides[name], num_heads=whole[name].shape[2], dim=HEAD_DIM,
                                whole=tensor(api, whole[name]), shard=tensor(api, shard[name]))
                api.call(function, desc, self.world_size, rank, args)

            def tensors(*names):
                return {name: tensor(api, shard[name]) for name in names}

            for name in ("q", "k", "v", "dout"):
                copy("ra_split_sequence", name)
            modifiers = {}
            if key_bias is not None:  # as a tensor of dim 1
                shard_bias = np.full((q.shape[0], shard["k"].shape[1]), np.nan, np.float32)
                args = api.make("ra_sequence_args", side=api.RA_SIDE_KEY_VALUE, dtype=api.RA_DTYPE_FLOAT32, num_heads=1, dim=1,
                                whole=tensor(api, key_bias[..., None, None]), shard=tensor(api, shard_bias[..., None, None]))
                api.call("ra_split_sequence", desc, self.world_size, rank, args)
                modifiers["key_bias"] = shard_bias.ctypes.data
            if has_sinks:
                modifiers["sinks"] = sinks.ctypes.data
            context = self.contexts[rank]
            args = api.make("ra_forward_args", lse=shard_lse.ctypes.data, **modifiers, **tensors("q", "k", "v", "out"))
            api.call("ra_forward", context, desc, args)
            if has_sinks:
                modifiers["dsinks"] = dsinks[rank].ctypes.data
            args = api.make("ra_backward_args", lse=shard_lse.ctypes.data, **modifiers,
                            **tensors("q", "k", "v", "out", "dout", "dq", "dk", "dv"))
            api.call("ra_backward", context, desc, args)
            for name in ("out", "dq", "dk", "dv"):
                copy("ra_join_sequence", name)

            # lse is [batch, head, seq]: a tensor of dim 1 whose sequence is its innermost axis.
            args = api.make("ra_sequence_args", side=api.RA_SIDE_QUERY, dtype=api.RA_DTYPE_FLOAT32, num_heads=lse.shape[1], dim=1,
                            whole=tensor(api, lse.transpose(0, 2, 1)[..., None]),
                            shard=tensor(api, shard_lse.transpose(0, 2, 1)[..., None]))
            api.call("ra_join_sequence", desc, self.world_size, rank, args)

        self.on_each_rank(compute)
        results = {name: whole[name].astype(np.float64) for name in ("out", "dq", "dk", "dv")}
        results["lse"] = lse.transpose(0, 2, 1).astype(np.float64)
        if has_sinks:
            results["dsinks"] = dsinks.astype(np.float64).sum(0)
        return results


# ---------------------------------------------------------------- problems


class Problem:
    """One group of cases: a mask as libringattn words it (`desc`) and as JAX does (`options`, or a boolean `mask`)."""

    def __init__(self, name, seqlen_q, seqlen_kv=None, heads=(4, 2), desc=None, options=None, mask=None):
        self.name, self.seqlen_q, self.heads = name, seqlen_q, heads
        self.seqlen_kv = seqlen_q if seqlen_kv is None else seqlen_kv
        self.desc, self.options, self.mask = desc or {}, options or {}, mask

    def sees(self):
        """[batch, query, key] of what the mask lets through, from whichever form it has."""
        i, j = np.arange(self.seqlen_q)[:, None], np.arange(self.seqlen_kv)
        sees = np.ones((BATCH, self.seqlen_q, self.seqlen_kv), bool)
        if self.mask is not None:
            sees &= self.mask[:, 0]
        if self.options.get("is_causal"):
            sees &= j <= i
        if "local_window_size" in self.options:
            left, right = self.options["local_window_size"]
            sees &= (i - left <= j) & (j <= i + right)
        if "key_value_seq_lengths" in self.options:
            sees &= j < self.options["key_value_seq_lengths"][:, None, None]
        return sees


def int64_array(values):
    return np.array(values, np.int64)


def block_mask(offsets_q, offsets_kv, causal):
    """Documents: query and key see each other inside the same one; causal is bottom-right in each."""
    mask = np.zeros((BATCH, 1, offsets_q[-1], offsets_kv[-1]), bool)
    for q0, q1, k0, k1 in zip(offsets_q, offsets_q[1:], offsets_kv, offsets_kv[1:]):
        i, j = np.arange(q1 - q0)[:, None], np.arange(k1 - k0)
        mask[:, 0, q0:q1, k0:k1] = j <= i + (k1 - k0) - (q1 - q0) if causal else True
    return mask


def padding_mask(seqlen_q, seqlen_kv, lengths):
    return np.broadcast_to(np.arange(seqlen_kv) < np.array(lengths)[:, None, None, None], (BATCH, 1, seqlen_q, seqlen_kv))


def problems(api):
    causal = {"mask": api.RA_MASK_CAUSAL}

    def documents(offsets_q, offsets_kv):
        return {"num_documents": len(offsets_q) - 1, "document_offsets_q": int64_array(offsets_q),
                "document_offsets_kv": int64_array(offsets_kv)}

    packed, ragged_q, ragged_kv = [0, 9, 9, 10, 33, 45], [0, 4, 20, 31], [0, 17, 17, 50]
    return [  # the fewer different shapes and options, the less there is for JAX to compile
        Problem("full, 4 heads", 45, heads=(4, 4)),
        Problem("full, 4 query heads on 1", 45, heads=(4, 1)),
        Problem("causal", 45, desc=causal, options={"is_causal": True}),
        Problem("local window (7, 2)", 45, desc={"window_left": 7, "window_right": 2}, options={"local_window_size": (7, 2)}),
        Problem("causal, local window (5, 0)", 45, desc={**causal, "window_left": 5},
                options={"is_causal": True, "local_window_size": (5, 0)}),
        Problem("documents", 45, desc=documents(packed, packed), mask=block_mask(packed, packed, False)),
        Problem("documents, causal", 45, desc={**causal, **documents(packed, packed)}, mask=block_mask(packed, packed, True)),
        Problem("padding by lengths", 45, desc={"kv_lengths": int64_array([45, 23])},
                options={"key_value_seq_lengths": np.array([45, 23], np.int32)}),
        Problem("padding by mask, one entry empty", 45, desc={"kv_lengths": int64_array([20, 0])}, mask=padding_mask(45, 45, (20, 0))),
        Problem("cross", 31, 50),
        Problem("cross, causal bottom-right", 31, 50, desc=causal, mask=block_mask([0, 31], [0, 50], True)),
        Problem("cross, documents, causal bottom-right", 31, 50, desc={**causal, **documents(ragged_q, ragged_kv)},
                mask=block_mask(ragged_q, ragged_kv, True)),
        Problem("cross, causal, more queries than keys", 50, 31, desc=causal, mask=block_mask([0, 50], [0, 31], True)),
    ]


def make_desc(api, problem, dtype_name, sharding, num_chunks):
    kind, stripe = sharding
    fields = {name: value.ctypes.data if isinstance(value, np.ndarray) else value for name, value in problem.desc.items()}
    return api.make("ra_attention_desc", batch=BATCH, seqlen_q=problem.seqlen_q, seqlen_kv=problem.seqlen_kv,
                    num_heads_q=problem.heads[0], num_heads_kv=problem.heads[1], head_dim=HEAD_DIM,
                    dtype=getattr(api, "RA_DTYPE_" + dtype_name.upper()), sharding=getattr(api, "RA_SHARDING_" + kind), stripe=stripe,
                    num_chunks=num_chunks, **fields)


def largest(array):
    return float(np.max(np.abs(array), initial=0.0))


def run_case(api, ranks, problem, dtype_name, sharding, num_chunks, random):
    """{result: (error of ours, error of plain)}, relative to the largest exact element."""
    dtype = DTYPES[dtype_name]
    shape_q = (BATCH, problem.seqlen_q, problem.heads[0], HEAD_DIM)
    shape_kv = (BATCH, problem.seqlen_kv, problem.heads[1], HEAD_DIM)
    q, dout = (random.standard_normal(shape_q).astype(dtype) for _ in range(2))
    k, v = (random.standard_normal(shape_kv).astype(dtype) for _ in range(2))
    ours = ranks.run(make_desc(api, problem, dtype_name, sharding, num_chunks), q, k, v, dout)

    blind = ~problem.sees().any(-1)  # [batch, query]
    seeing_dout = np.where(blind[..., None, None], np.zeros((), dtype), dout)
    exact = run_jax(np.dtype(np.float64), problem, q, k, v, seeing_dout)
    plain = run_jax(dtype, problem, q, k, v, seeing_dout)
    in_float32 = run_jax(np.dtype(np.float32), problem, q, k, v, seeing_dout)
    plain["lse"] = in_float32["lse"]
    also_plain = gradients_from_lse(*(x.astype(np.float32) for x in (q, k, v, in_float32["out"], in_float32["lse"], seeing_dout)),
                                    problem.sees())

    errors = {}
    for name in ours:
        of_queries = name in ("out", "lse", "dq")
        rows = ~blind if of_queries else slice(None)
        size = largest(exact[name][rows]) or 1.0
        error = largest(ours[name][rows] - exact[name][rows]) / size
        unseeing = -np.inf if name == "lse" else 0
        if not np.isfinite(error) or (of_queries and not np.all(ours[name][blind] == unseeing)):
            error = np.inf
        plain_error = max(largest(x[name][rows] - exact[name][rows]) for x in (plain, also_plain) if name in x) / size
        errors[name] = error, plain_error
    return errors


def largest_finite(array):
    return largest(array[np.isfinite(array)])


def error_of(values, exact, least=0.0):
    """Relative to the largest that is finite, or to `least` if that is more; infinite where they are not infinite in the same places."""
    if np.isnan(values).any() or not np.array_equal(np.isinf(values), np.isinf(exact)):
        return np.inf
    finite = np.isfinite(exact)
    return largest(values[finite] - exact[finite]) / (max(largest_finite(exact), least) or 1.0)


def parse_options(description):
    """Where the library is, and the seed, which is printed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", dest="so", required=True, help="path of libringattn.so")
    parser.add_argument("--header", required=True, help="path of ringattn.h")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("RINGATTN_TEST_SEED", 1)),
                        help="default: RINGATTN_TEST_SEED, or 1")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, seed {options.seed}", flush=True)
    return options


def main():
    options = parse_options(__doc__)
    check_that_exact_is_exact()

    api = ringattn_ctypes.load(options.so, options.header)
    all_ranks = [Ranks(api, world_size) for world_size in (1, 2, 3, 4)]
    random = np.random.default_rng(options.seed)
    groups = problems(api)
    shardings = (("CONTIGUOUS", 1), ("ZIGZAG", 1), ("STRIPED", 1), ("STRIPED", 4))
    drawn = 4 if os.environ.get("RINGATTN_TEST_FULL", "0") != "0" else 2
    cases = []  # (group's name, dtype, case, errors)
    for problem in groups:
        for dtype_name in DTYPES:
            for ranks in all_ranks:
                for sharding in (shardings[i] for i in random.permutation(4)[:drawn]):
                    num_chunks = int(random.integers(0, 4))
                    errors = run_case(api, ranks, problem, dtype_name, sharding, num_chunks, random)
                    case = f"{dtype_name}, {ranks.world_size} ranks, {sharding[0].lower()} {sharding[1]}, num_chunks {num_chunks}"
                    cases.append((problem.name, dtype_name, case, errors))
    for ranks in all_ranks:
        ranks.destroy()

    allowed = {}
    for dtype_name in DTYPES:
        for name in ("out", "lse", "dq", "dk", "dv"):
            plain = max(errors[name][1] for _, of_dtype, _, errors in cases if of_dtype == dtype_name)
            allowed[dtype_name, name] = 2 * max(plain, UNIT_ROUNDOFF["float32" if name == "lse" else dtype_name])

    failed = 0
    for problem in groups:
        worst = []
        for group_name, dtype_name, case, errors in cases:
            if group_name != problem.name:
                continue
            ratio, name = max((errors[name][0] / allowed[dtype_name, name], name) for name in errors)
            worst.append((ratio, name, case))
            if not ratio <= 1:
                failed += 1
                print(f"FAILED  {problem.name}, {case}: error of {name} is {ratio:.3f} of what is allowed")
        ratio, name, case = max(worst)
        print(f"{problem.name:38} {len(worst)} cases, worst error {ratio:.2f} of the allowed ({name}; {case})")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
