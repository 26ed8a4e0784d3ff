"""libringattn's dilated attention against LongNet's, made of the operations by which torchscale defines it.

torchscale's DilatedAttention on one device, for each branch of segment length s and dilation r:

    cut       the sequence, filled up with zeros, into segments of g = min(s, n)
    thin out  a segment, filled up to a multiple of r, seen as [l, r] positions and its heads, filled up too, as [r, h]: the diagonal
              of the two dimensions r is what is kept, [l, (r h)]
    attend    within each segment
    spread    outputs and lse to where their rows were; rows that were not kept get an output of 0 and an lse of -infinity

and then the sum of the branches' outputs by softmax(lse), whose weights are constants in the backward pass. These reshapes have nothing in
common with the positions and phases that libringattn counts. Where a segment is no multiple of r there is one segment only, since
torchscale puts rows of several such segments elsewhere than its own description says.

JAX in float64 is exact. Compiling it takes a minute, so what it gave is kept in longnet.npz, together with how far JAX in float32 is off;
the tolerance is twice that, or the rounding of what is stored and of lse, by which gradients are made. Each case runs on 1 to 4 ranks.
Prints a line per group of cases. Exit status 1 if a case fails.

    longnet.py --library SO --header H     compares; with RINGATTN_TEST_FULL=1 the file with JAX, too
    longnet.py --write                     makes the file again
"""

import argparse
import functools
import itertools
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jax_oracle
import ringattn_ctypes

GOLDEN = pathlib.Path(__file__).with_name("longnet.npz")
HEAD_DIM = jax_oracle.HEAD_DIM = 2  # of which Ranks is told by its module
RESULTS = ("out", "lse", "dq", "dk", "dv")


def fill_up(x, axis, multiple):
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def thin_out(x, r):
    """[b, g, heads, d] -> [b, l, heads, d]"""
    heads = x.shape[2]
    x = fill_up(fill_up(x, 1, r), 2, r)
    b, g, padded_heads, d = x.shape
    x = x.reshape(b, g // r, r, r, padded_heads // r, d)
    kept = jnp.diagonal(x, axis1=2, axis2=3)  # [b, l, h, d, r]
    return jnp.moveaxis(kept, 4, 2).reshape(b, g // r, padded_heads, d)[:, :, :heads]


def spread(x, r, g, fill):
    """[b, l, heads, d] -> [b, g, heads, d]"""
    b, length, heads, d = x.shape
    x = fill_up(x, 2, r)
    x = x.reshape(b, length, r, x.shape[2] // r, d)
    places = jnp.eye(r, dtype=bool)[None, None, :, :, None, None]  # [.., place in the block, phase, ..]
    x = jnp.where(places, x[:, :, None], fill)
    return x.reshape(b, length * r, -1, d)[:, :g, :heads]


def attend(q, k, v, key_exists, causal, scale):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if causal:
        n = scores.shape[-1]
        scores = jnp.where(jnp.arange(n)[None, :] <= jnp.arange(n)[:, None], scores, -jnp.inf)
    scores = jnp.where(key_exists.transpose(0, 2, 3, 1), scores, -jnp.inf)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    lse = jnp.where((weights == 0).all(-1), -jnp.inf, (top + jnp.log(total))[..., 0])
    return jnp.einsum("bhqk,bkhd->bqhd", weights / total, v), lse.transpose(0, 2, 1)[..., None]


def longnet(q, k, v, branches, causal, zero_keys, constant_weights):
    b, n, heads, d = q.shape
    outs, lses = [], []
    for s, r in branches:
        g = min(s, n)

        def segments(x):
            return fill_up(x, 1, g).reshape(-1, g, *x.shape[2:])

        exists = jnp.ones((b, n, heads, 1), bool)
        if zero_keys:
            exists = jnp.ones_like(fill_up(exists, 1, g))
            kept_exists = jnp.ones_like(thin_out(segments(exists), r))
        else:
            kept_exists = thin_out(segments(exists), r)
        out, lse = attend(*(thin_out(segments(x), r) for x in (q, k, v)), kept_exists, causal, d**-0.5)
        outs.append(spread(out, r, g, 0).reshape(b, -1, heads, d)[:, :n])
        lses.append(spread(lse, r, g, -jnp.inf).reshape(b, -1, heads, 1)[:, :n])
    outs, lses = jnp.stack(outs), jnp.stack(lses)
    top = jax.lax.stop_gradient(lses.max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(lses - top)
    total = weights.sum(0)
    seen = total > 0
    total = jnp.where(seen, total, 1)
    shares = weights / total
    if constant_weights:
        shares = jax.lax.stop_gradient(shares)
    return (shares * outs).sum(0), jnp.where(seen, top + jnp.log(total), -jnp.inf)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def both_ways(case, q, k, v, dout):
    out, pull_back, lse = jax.vjp(lambda *x: longnet(*x, *case), q, k, v, has_aux=True)
    return out, lse, *pull_back(dout)


def run_jax(dtype, case, *inputs):
    results = both_ways(case, *(x.astype(dtype) for x in inputs))
    return dict(zip(RESULTS, (np.asarray(x).astype(np.float64) for x in results)))


def make_desc(api, n, heads, case, sharding, num_chunks):
    branches, causal, zero_keys, constant_weights = case
    segments, dilations = (np.array(x, np.int64) for x in zip(*branches))
    kind, stripe = sharding
    desc = api.make("ra_attention_desc", batch=1, seqlen_q=n, num_heads_q=heads, head_dim=HEAD_DIM,
                    mask=api.RA_MASK_CAUSAL if causal else api.RA_MASK_FULL, sharding=getattr(api, "RA_SHARDING_" + kind), stripe=stripe,
                    num_chunks=num_chunks, num_branches=len(branches), segment_lengths=segments.ctypes.data,
                    dilations=dilations.ctypes.data,
                    dilation_padding=api.RA_DILATION_PADDING_ZERO_KEYS if zero_keys else api.RA_DILATION_PADDING_MASKED,
                    dilation_gradient=api.RA_DILATION_GRADIENT_CONSTANT_WEIGHTS if constant_weights else api.RA_DILATION_GRADIENT_EXACT)
    return desc, (segments, dilations)  # which must outlive it


SHAPES = [  # tokens, heads, branches
    (24, 4, ((4, 1), (8, 2), (24, 4))),
    (23, 4, ((4, 1), (8, 2), (32, 4))),    # short last segments
    (19, 3, ((6, 3), (19, 2))),            # heads that are no multiple of the dilation
    (20, 6, ((10, 2),)),                   # rows that no branch keeps
    (17, 5, ((32, 3), (17, 1))),           # one segment that is no multiple of the dilation
]


def all_cases():
    """(name, tokens, heads, case)"""
    for n, heads, branches in SHAPES:
        for causal, zero_keys, constant_weights in itertools.product((False, True), repeat=3):
            if causal and zero_keys:
                continue
            named = (("causal", causal), ("zero keys", zero_keys), ("constant weights", constant_weights))
            words = [f"{n} tokens", f"{heads} heads", f"{len(branches)} branches", *(name for name, value in named if value)]
            yield ", ".join(words), n, heads, (branches, causal, zero_keys, constant_weights)


def inputs_of(n, heads):
    """q, k, v, dout: multiples of 1/16, which every dtype holds."""
    count = n * heads * HEAD_DIM
    return [(np.arange(count) * step % 61 / 16 - 1.875).astype(np.float32).reshape(1, n, heads, HEAD_DIM) for step in (7, 11, 13, 17)]


def make_golden():
    """Exact results by "case: result", and "plain: result", the largest error of JAX in float32."""
    golden, plain_errors = {}, dict.fromkeys(RESULTS, 0.0)
    for name, n, heads, case in all_cases():
        exact, plain = (run_jax(np.dtype(dtype), case, *inputs_of(n, heads)) for dtype in (np.float64, np.float32))
        for result in RESULTS:
            golden[f"{name}: {result}"] = exact[result]
            plain_errors[result] = max(plain_errors[result], jax_oracle.error_of(plain[result], exact[result]))
    return golden | {f"plain: {result}": np.array(error) for result, error in plain_errors.items()}


def compare(api, golden, random):
    unit = jax_oracle.UNIT_ROUNDOFF["float32"]
    largest_lse = max(jax_oracle.largest_finite(golden[f"{name}: lse"]) for name, *_ in all_cases())
    least = {result: unit if result in ("out", "lse") else unit * (1 + largest_lse) for result in RESULTS}
    allowed = {result: 2 * max(least[result], float(golden[f"plain: {result}"])) for result in RESULTS}
    all_ranks = [jax_oracle.Ranks(api, world_size) for world_size in (1, 2, 3, 4)]
    shardings = (("CONTIGUOUS", 1), ("ZIGZAG", 1), ("STRIPED", 1), ("STRIPED", 4))
    count = failed = 0
    for name, n, heads, case in all_cases():
        worst = []
        for ranks in all_ranks:
            sharding, num_chunks = shardings[random.integers(4)], int(random.integers(0, 4))
            desc, kept = make_desc(api, n, heads, case, sharding, num_chunks)
            ours = ranks.run(desc, *inputs_of(n, heads))
            del kept
            for result in RESULTS:
                ratio = jax_oracle.error_of(ours[result], golden[f"{name}: {result}"]) / allowed[result]
                worst.append((ratio, result, f"{ranks.world_size} ranks, {sharding[0].lower()} {sharding[1]}, num_chunks {num_chunks}"))
            count += 1
        failures = [w for w in worst if not w[0] <= 1]
        failed += len({w[2] for w in failures})
        for ratio, result, where in failures:
            print(f"FAILED  {name}, {where}: error of {result} is {ratio:.3f} of what is allowed")
        ratio, result, where = max(worst)
        print(f"{name:66} worst error {ratio:.2f} of the allowed ({result}; {where})")
    for ranks in all_ranks:
        ranks.destroy()
    print(f"{count - failed} passed, {failed} failed")
    return failed == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", dest="so", help="path of libringattn.so")
    parser.add_argument("--header", help="path of ringattn.h")
    parser.add_argument("--write", action="store_true", help="make longnet.npz again")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("RINGATTN_TEST_SEED", 1)),
                        help="default: RINGATTN_TEST_SEED, or 1")
    options = parser.parse_args()
    if options.write:
        np.savez_compressed(GOLDEN, **make_golden())
        print(f"written: {GOLDEN}, {GOLDEN.stat().st_size} bytes")
        return 0
    golden = dict(np.load(GOLDEN))
    if os.environ.get("RINGATTN_TEST_FULL", "0") != "0":
        for key, values in make_golden().items():
            if not key.startswith("plain") and not jax_oracle.error_of(values, golden[key]) <= 1e-12:
                sys.exit(f"{GOLDEN.name} has other values for {key} than jax {jax.__version__}: longnet.py --write")
    print(f"seed {options.seed}", flush=True)
    return 0 if compare(ringattn_ctypes.load(options.so, options.header), golden, np.random.default_rng(options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
