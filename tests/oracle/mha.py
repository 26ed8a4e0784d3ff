"""ra_mha_forward and ra_mha_backward against JAX's automatic gradients.

The layer is written down here as ra_mha_desc words it, in jax.numpy: projections with biases, heads that are normalised and turned,
attention with a mask, the projection of what comes out. Its out and the gradients of x and of all weights are JAX's, of sum(dout * out):
in float64 exact, and in float32 plain, where all that the library stores in the tensors' dtype (q, k, v, their attention and the
gradients of these) is rounded to it on the way, forwards and back.

The tolerance is as in jax_oracle.py: twice the largest error of the plain results of a dtype over all cases, or of the rounding of what
is stored. In each case the gradients have to be the same bits with each ra_checkpoint, on every rank where they are reduced, and,
where they are not, their sum over the ranks has to be right, on top of what they held before.

Cases of 1, 2, 3, 4 and 8 ranks, in every sharding. Prints how many. Exit status 1 if one fails.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jax_oracle
import ringattn_ctypes
from jax_oracle import DTYPES, UNIT_ROUNDOFF, error_of, int64_array, tensor

BATCH, D_MODEL = 2, 20
WORLD_SIZES = 1, 2, 3, 4, 8
SHARDINGS = ("CONTIGUOUS", 1), ("ZIGZAG", 1), ("STRIPED", 3)
EPSILON, BASE = 1e-3, 500.0


class Model:
    """One kind of layer: JAX compiles it once for each precision."""

    def __init__(self, name, seqlen=29, heads=(4, 2), dims=(8, 8), rotary="NONE", fraction=1.0, biases=(0, 0), norm=0, causal=False, **desc):
        self.name, self.seqlen, self.heads, self.dims, self.rotary, self.fraction = name, seqlen, heads, dims, rotary, fraction
        self.qkv_bias, self.out_bias = biases
        self.norm, self.causal, self.desc = norm, causal, desc
        (q, kv), (d, v) = heads, dims
        self.shapes = {"w_q": (D_MODEL, q * d), "w_k": (D_MODEL, kv * d), "w_v": (D_MODEL, kv * v), "w_o": (q * v, D_MODEL)}
        if self.qkv_bias:
            self.shapes |= {"b_q": (q * d,), "b_k": (kv * d,), "b_v": (kv * v,)}
        if self.out_bias:
            self.shapes |= {"b_o": (D_MODEL,)}
        if norm:
            self.shapes |= {"norm_q": (d,), "norm_k": (d,)}
        self.compiled = {}

    def sees(self):
        """[batch, query, key]"""
        i, j = np.arange(self.seqlen)[:, None], np.arange(self.seqlen)
        sees = np.ones((BATCH, self.seqlen, self.seqlen), bool)
        if self.causal:
            sees &= j <= i
        if "window_left" in self.desc:
            sees &= j >= i - self.desc["window_left"]
        if "kv_lengths" in self.desc:
            sees &= j < self.desc["kv_lengths"][:, None, None]
        if "document_offsets_q" in self.desc:
            number = np.searchsorted(self.desc["document_offsets_q"], np.arange(self.seqlen), side="right")
            sees &= number[:, None] == number
        return sees

    def turn(self, heads):
        """[batch, n, heads, dim] by its positions, in float64 angles."""
        r = 2 * int(self.fraction * self.dims[0] / 2)
        if self.rotary == "NONE":
            return heads
        angles = np.arange(self.seqlen)[:, None] * BASE ** (-2 * np.arange(r // 2) / r)
        cos, sin = (np.asarray(f(angles), heads.dtype)[:, None, :] for f in (np.cos, np.sin))
        a, b = (heads[..., 0:r:2], heads[..., 1:r:2]) if self.rotary == "INTERLEAVED" else (heads[..., : r // 2], heads[..., r // 2 : r])
        turned = a * cos - b * sin, a * sin + b * cos
        first = jnp.stack(turned, -1).reshape(*heads.shape[:-1], r) if self.rotary == "INTERLEAVED" else jnp.concatenate(turned, -1)
        return jnp.concatenate([first, heads[..., r:]], -1)

    def layer(self, x, weights, sees, store, from_out):
        (q_heads, kv_heads), (dim, dim_v) = self.heads, self.dims

        def project(name, heads, dim):
            y = x @ weights["w_" + name] + weights.get("b_" + name, 0)
            return store(y.reshape(BATCH, self.seqlen, heads, dim))

        def style(heads, norm):
            if norm in weights:
                heads = heads * weights[norm] / jnp.sqrt((heads * heads).mean(-1, keepdims=True) + np.float32(EPSILON))
            return store(self.turn(heads)) if norm in weights or self.rotary != "NONE" else heads

        q, k = style(project("q", q_heads, dim), "norm_q"), style(project("k", kv_heads, dim), "norm_k")
        v = project("v", kv_heads, dim_v)
        k, v = (jnp.repeat(y, q_heads // kv_heads, axis=2) for y in (k, v))
        scores = jnp.where(sees[:, None], jnp.einsum("bihd,bjhd->bhij", q, k) * np.float32(dim**-0.5), -1e30)
        attended = store(jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), v))
        if from_out:  # the gradient of softmax(s) v is that of p v - sum(p) out, with p = exp(s - lse) and out and lse held fixed
            out, lse = jax.lax.stop_gradient((attended, jax.nn.logsumexp(scores, -1, keepdims=True)))
            p = jnp.exp(scores - lse)
            moved = jnp.einsum("bhij,bjhd->bihd", p, v) - p.sum(-1).transpose(0, 2, 1)[..., None] * out
            attended = out + store(moved - jax.lax.stop_gradient(moved))
        return attended.reshape(BATCH, self.seqlen, -1) @ weights["w_o"] + weights.get("b_o", 0)

    def run(self, precision, dtype, x, weights, dout, from_out=False):
        """out, and gradients by name, as float64; `from_out`: those of attention by its stored output, as the library has them."""
        key = precision, dtype, from_out
        if key not in self.compiled:
            is_rounded = precision == np.float32 and dtype != np.float32

            @jax.custom_vjp
            def store(y):
                return y.astype(dtype).astype(y.dtype) if is_rounded else y

            store.defvjp(lambda y: (store(y), None), lambda _, g: (store(g),))
            sees = self.sees()

            def both_ways(x, weights, dout):
                out, pull_back = jax.vjp(lambda x, weights: self.layer(x, weights, sees, store, from_out), x, weights)
                return out, *pull_back(dout)

            self.compiled[key] = jax.jit(both_ways)
        out, dx, gradients = self.compiled[key](x.astype(precision), {name: w.astype(precision) for name, w in weights.items()},
                                                dout.astype(precision))
        return {name: np.asarray(y).astype(np.float64) for name, y in {"out": out, "x": dx, **gradients}.items()}


def models():
    return [
        Model("causal, turned halves", rotary="HALVES", causal=True),
        Model("full, 1 head"),
        Model("full, 4 heads on 1, interleaved", heads=(4, 1), rotary="INTERLEAVED"),
        Model("biases, v wider", dims=(6, 10), biases=(1, 1), causal=True),
        Model("normalised heads, part turned", rotary="HALVES", fraction=0.5, norm=1, causal=True),
        Model("all of it, window", rotary="INTERLEAVED", fraction=0.8, biases=(1, 1), norm=1, causal=True, window_left=7),
        Model("documents", rotary="HALVES", causal=True, num_documents=3, document_offsets_q=int64_array([0, 11, 12, 29])),
        Model("padding", norm=1, biases=(0, 1), kv_lengths=int64_array([29, 13])),
        Model("fewer tokens than ranks", seqlen=5, rotary="HALVES", biases=(1, 0), causal=True),
        Model("long", seqlen=300, rotary="HALVES", causal=True),
    ]


def matrix(api, array):
    return api.ra_tensor(array.ctypes.data, 0, 0, 0, array.nbytes)


def run_case(api, ranks, model, dtype, sharding, x, weights, dout):
    """The library's out and gradients as float64, which it computes in all ways that have to agree."""
    kind, stripe = sharding
    dtype_name = next(name for name, d in DTYPES.items() if d == dtype)
    fields = {name: value.ctypes.data if isinstance(value, np.ndarray) else value for name, value in model.desc.items()}
    desc = api.make("ra_attention_desc", batch=BATCH, seqlen_q=model.seqlen, num_heads_q=model.heads[0], num_heads_kv=model.heads[1],
                    head_dim=model.dims[0], head_dim_v=model.dims[1], dtype=getattr(api, "RA_DTYPE_" + dtype_name.upper()),
                    mask=api.RA_MASK_CAUSAL if model.causal else api.RA_MASK_FULL, sharding=getattr(api, "RA_SHARDING_" + kind), stripe=stripe,
                    **fields)
    whole = {"x": x, "dout": dout, "out": np.full_like(x, np.nan), "dx": np.full_like(x, np.nan)}
    before = {name: np.full(w.shape, 0.25, np.float32) for name, w in weights.items()}
    shares = [None] * ranks.world_size

    def compute(rank):
        n = api.call("ra_get_shard_length", desc, ranks.world_size, rank, api.RA_SIDE_QUERY)
        shard = {name: np.full((BATCH, n, D_MODEL), np.nan, dtype) for name in whole}

        def copy(function, name):
            args = api.make("ra_sequence_args", num_heads=1, dim=D_MODEL, whole=tensor(api, whole[name][:, :, None]),
                            shard=tensor(api, shard[name][:, :, None]))
            api.call(function, desc, ranks.world_size, rank, args)

        copy("ra_split_sequence", "x")
        copy("ra_split_sequence", "dout")
        given = {name: matrix(api, w) for name, w in weights.items()}
        results = []
        for checkpoint in (api.RA_CHECKPOINT_ATTENTION, api.RA_CHECKPOINT_ALL, api.RA_CHECKPOINT_INPUT):
            mha = api.make("ra_mha_desc", d_model=D_MODEL, rotary=getattr(api, "RA_ROTARY_" + model.rotary), rotary_base=BASE,
                           rotary_fraction=model.fraction, has_qkv_bias=model.qkv_bias, has_out_bias=model.out_bias,
                           normalize_heads=model.norm, norm_epsilon=EPSILON, checkpoint=checkpoint)
            needed = api.make("ra_mha_requirements")
            api.call("ra_get_mha_requirements", ranks.contexts[rank], desc, mha, needed)
            room = np.empty(needed.activations + 64, np.uint8)
            offset = -room.ctypes.data % 64
            kept = {"activations": room.ctypes.data + offset if needed.activations else None, "activations_size": needed.activations}
            api.call("ra_mha_forward", ranks.contexts[rank], desc, mha,
                     api.make("ra_mha_forward_args", x=matrix(api, shard["x"]), out=matrix(api, shard["out"]), **given, **kept))
            copy("ra_join_sequence", "out")

            def differentiate(reduce, accumulate):
                gradients = {name: before[name].copy() if accumulate else np.full(w.shape, np.nan, np.float32) for name, w in weights.items()}
                api.call("ra_mha_backward", ranks.contexts[rank], desc, mha,
                         api.make("ra_mha_backward_args", x=matrix(api, shard["x"]), dout=matrix(api, shard["dout"]), dx=matrix(api, shard["dx"]),
                                  reduce=reduce, accumulate=accumulate, **given, **kept,
                                  **{"d" + name: matrix(api, g) for name, g in gradients.items()}))
                return gradients

            results.append(differentiate(1, 0) | {"dx": shard["dx"].copy()})
            if checkpoint == api.RA_CHECKPOINT_ALL:
                share = differentiate(0, 1)
            copy("ra_join_sequence", "dx")
        shares[rank] = results, share

    ranks.on_each_rank(compute)
    reduced = shares[0][0][0]
    for rank, (results, _) in enumerate(shares):
        for result, name in itertools.product(results, reduced):
            expected = results[0][name] if name == "dx" else reduced[name]
            if not np.array_equal(result[name].view(np.uint8), expected.view(np.uint8)):
                raise RuntimeError(f"d{name} on rank {rank} differs between checkpoints, or from rank 0")
    ours = {"out": whole["out"], "x": whole["dx"], **{name: reduced[name] for name in weights}}
    sums = {name: sum(share[name].astype(np.float64) - before[name] for _, share in shares) for name in weights}
    return {name: y.astype(np.float64) for name, y in ours.items()}, sums


def main():
    options = jax_oracle.parse_options(__doc__)
    api = ringattn_ctypes.load(options.so, options.header)
    all_ranks = [jax_oracle.Ranks(api, world_size) for world_size in WORLD_SIZES]
    random = np.random.default_rng(options.seed)
    cases = []  # (model, dtype, description, {result: (error of ours, error of plain)})
    for model, (dtype_name, dtype), ranks, sharding in itertools.product(models(), DTYPES.items(), all_ranks, SHARDINGS):
        x, dout = (random.standard_normal((BATCH, model.seqlen, D_MODEL)).astype(dtype) for _ in range(2))
        weights = {name: (random.standard_normal(shape) / (shape[0] ** 0.5 if len(shape) == 2 else 1)).astype(dtype)
                   for name, shape in model.shapes.items()}
        exact = model.run(np.float64, dtype, x, weights, dout)
        plain = [model.run(np.float32, dtype, x, weights, dout, from_out) for from_out in (False, True)]
        ours, sums = run_case(api, ranks, model, dtype, sharding, x, weights, dout)
        errors = {name: (error_of(ours[name], exact[name]), max(error_of(p[name], exact[name]) for p in plain)) for name in exact}
        # What is subtracted again has been rounded where it was added.
        errors |= {"share of " + name: (error_of(sums[name], exact[name]) / 4, errors[name][1]) for name in sums}
        cases.append((model, dtype_name, f"{dtype_name}, {ranks.world_size} ranks, {sharding[0].lower()}", errors))
    for ranks in all_ranks:
        ranks.destroy()

    def unit_roundoff(dtype_name, name):
        return UNIT_ROUNDOFF[dtype_name if name in ("out", "x") else "float32"]

    allowed = {}
    for _, dtype_name, _, errors in cases:
        for name, (_, plain_error) in errors.items():
            least = max(plain_error, unit_roundoff(dtype_name, name))
            allowed[dtype_name, name] = max(allowed.get((dtype_name, name), 0), 2 * least)

    failed = 0
    for model in dict.fromkeys(model for model, *_ in cases):
        worst = []
        for _, dtype_name, case, errors in (case for case in cases if case[0] is model):
            ratio, name = max((errors[name][0] / allowed[dtype_name, name], name) for name in errors)
            worst.append((ratio, name, case))
            if not ratio <= 1:
                failed += 1
                print(f"FAILED  {model.name}, {case}: error of {name} is {ratio:.3f} of what is allowed")
        ratio, name, case = max(worst)
        print(f"{model.name:34} {len(worst)} cases, worst error {ratio:.2f} of the allowed ({name}; {case})")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
