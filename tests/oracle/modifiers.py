"""libringattn against JAX's automatic gradients, where scores and weights are modified: ALiBi, key bias, sinks, softcap, dropout, mask
slices and dilation, each alone and together with each other and with every other mask.

Attention is written down here as ra_attention_desc words it, a pair of positions at a time in NumPy and the rest in jax.numpy:

    score = softcap(scale q.k) - slope |i + shift - j| + bias        l_n = log(sum_j exp(score) + zero keys)   of branch n
    o_n = sum_j kept / (1 - p) exp(score - l_n) v                    lse = log(sum_n exp(l_n) + sum exp(sinks))
    out = sum_n exp(l_n - lse) o_n

where a problem without dilation has one branch that keeps everything, and kept is what ra_get_dropout_mask says. dq, dk, dv and dsinks
are JAX's, of sum(dout * out); where the branches' weights count as constants, exp(l_n - lse) has no derivative, and dsinks, of which
torchscale knows nothing, is that of the result.

In float64 that is exact, and in float32 plain. The tolerance is as in jax_oracle.py: twice the largest error of the plain results, or of
the rounding of what is stored, for gradients also of lse, by which they are made.

Cases of 1 to 4 ranks: each modifier alone, and random combinations. Prints how many. Exit status 1 if one fails.
"""

import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jax_oracle
import ringattn_ctypes

BATCH, HEADS, HEADS_KV, BRANCHES, SINKS = 2, 4, 2, 2, 2
HEAD_DIM = jax_oracle.HEAD_DIM = 4  # of which Ranks is told by its module
LENGTHS = ((23, 23), (13, 29), (1, 29))  # of queries and keys; JAX compiles for each
RESULTS = ("out", "lse", "dq", "dk", "dv", "dsinks")
MODIFIERS = ("alibi", "key_bias", "sinks", "softcap", "dropout", "slices", "dilation")
CASES = 280


# ---------------------------------------------------------------- the definition


def attend(seen, zero_keys, distance, constant, modifiers, bias, kept, q, k, v, sinks):
    """out [b, i, h, d] and lse [b, i, h]. seen [n, b, h, i, j], zero_keys [n, h, i], kept [b, h, i, j]."""
    softcap, slopes = modifiers
    k, v = (jnp.repeat(x, HEADS // HEADS_KV, axis=2) for x in (k, v))
    score = jnp.einsum("bihd,bjhd->bhij", q, k) * np.float32(HEAD_DIM**-0.5)
    cap = jnp.where(softcap > 0, softcap, 1)
    score = jnp.where(softcap > 0, cap * jnp.tanh(score / cap), score)
    score = score - slopes[:, None, None] * distance + bias[:, None, None, :]
    sink = sinks[None, :, None, :]
    top = jnp.maximum(jnp.max(jnp.where(seen, score, -jnp.inf), axis=(0, 4)), jnp.max(sink, axis=-1))
    top = jax.lax.stop_gradient(jnp.maximum(top, jnp.where(zero_keys.sum(0) > 0, 0, -jnp.inf)))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, score - top[..., None], 0)), 0)
    of_branch = weights.sum(-1) + zero_keys[:, None] * jnp.exp(-top)
    total = of_branch.sum(0) + jnp.exp(sink - top[..., None]).sum(-1)
    shares = of_branch / jnp.where(total > 0, total, 1)
    shares = jnp.where(constant, jax.lax.stop_gradient(shares), shares)
    outs = jnp.einsum("nbhij,bjhd->nbhid", weights * kept, v) / jnp.where(of_branch > 0, of_branch, 1)[..., None]
    out = (shares[..., None] * outs).sum(0)
    lse = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)
    return out.transpose(0, 2, 1, 3), lse.transpose(0, 2, 1)


@jax.jit
def both_ways(seen, zero_keys, distance, constant, modifiers, bias, kept, q, k, v, sinks, dout):
    def function(constant):
        return lambda *x: attend(seen, zero_keys, distance, constant, modifiers, bias, kept, *x)

    out, pull_back, lse = jax.vjp(function(constant), q, k, v, sinks, has_aux=True)
    dq, dk, dv, _ = pull_back(dout)
    dsinks = jax.vjp(lambda x: function(False)(q, k, v, x)[0], sinks)[1](dout)[0]
    return out, lse, dq, dk, dv, dsinks


def positions(case):
    """i + shift - j, and the document of each, by position: [i], [j], [i], [j]."""
    i, j = np.zeros(case["seqlen_q"], int), np.zeros(case["seqlen_kv"], int)
    document_i, document_j = np.zeros_like(i), np.zeros_like(j)
    length = np.zeros_like(i)  # of the query's document, in keys
    for number, (q0, q1, k0, k1) in enumerate(zip(case["offsets_q"], case["offsets_q"][1:], case["offsets_kv"], case["offsets_kv"][1:])):
        i[q0:q1] = np.arange(q1 - q0) + ((k1 - k0) - (q1 - q0) if case["bottom_right"] else 0)
        j[k0:k1] = np.arange(k1 - k0)
        document_i[q0:q1], document_j[k0:k1], length[q0:q1] = number, number, k1 - k0
    return i[:, None], j[None, :], document_i[:, None], document_j[None, :], length


def in_slice(case, slice_):
    q0, q1, k0, k1, kind = slice_
    i, j = np.arange(case["seqlen_q"])[:, None], np.arange(case["seqlen_kv"])
    inside = (q0 <= i) & (i < q1) & (k0 <= j) & (j < k1)
    if kind in ("CAUSAL", "BIDIRECTIONAL_CAUSAL"):
        inside &= j - k1 <= i - q1
    if kind in ("INVERSE_CAUSAL", "BIDIRECTIONAL_CAUSAL"):
        inside &= j - k0 >= i - q0
    return inside


def mask_of(case):
    """seen [branch, b, h, i, j], and zero_keys [branch, h, i]."""
    i, j, document_i, document_j, length = positions(case)
    sees = document_i == document_j
    if case["causal"]:
        sees &= j <= i
    left, right = case["window"]
    if left >= 0:
        sees &= j >= i - left
    if right >= 0:
        sees &= j <= i + right
    if case["slices"]:
        sees &= np.any([in_slice(case, slice_) for slice_ in case["slices"]], axis=0)
    exists = np.arange(case["seqlen_kv"]) < np.array(case["kv_lengths"])[:, None]
    seen = np.zeros((BRANCHES, BATCH, HEADS, *sees.shape), bool)
    zero_keys = np.zeros((BRANCHES, HEADS, case["seqlen_q"]))
    every = sees[None, None] & exists[:, None, None, :] & np.isfinite(case["bias"])[:, None, None, :]
    if not case["branches"]:
        seen[0] = every
    for n, (segment, r) in enumerate(case["branches"]):
        for h in range(HEADS):
            phase = h % r if case["interleaved"] else h // -(-HEADS // r)
            g = np.minimum(segment, np.maximum(length, 1))[:, None]  # a document's, so that keys of others do not matter
            segments_q = np.clip(i, 0, np.maximum(length - 1, 0)[:, None]) // g
            segments_kv = j // g
            kept_q, kept_kv = (i - segments_q * g) % r == phase, (j - segments_kv * g) % r == phase
            seen[n, :, h] = every[:, 0] & (segments_q == segments_kv) & kept_q & kept_kv
            if case["zero_keys"]:
                own = (document_i == document_j) & (segments_q == segments_kv) & kept_kv
                zero_keys[n, h] = np.where(kept_q[:, 0] & (length > 0), -(-g[:, 0] // r) - own.sum(-1), 0)
    return seen, zero_keys


def run_jax(dtype, case, kept, tensors):
    i, j, *_ = positions(case)
    seen, zero_keys = mask_of(case)
    bias = np.where(np.isfinite(case["bias"]), case["bias"], 0)
    sinks = case["sinks"] if len(case["sinks"]) else np.full((HEADS, SINKS), -np.inf)
    modifiers = dtype.type(case["softcap"]), case["slopes"].astype(dtype)
    results = both_ways(seen, zero_keys.astype(dtype), np.abs(i - j).astype(dtype), case["constant_weights"], modifiers,
                        bias.astype(dtype), kept.astype(dtype), *(tensors[name].astype(dtype) for name in ("q", "k", "v")),
                        sinks.astype(dtype), tensors["dout"].astype(dtype))
    return dict(zip(RESULTS, (np.asarray(x).astype(np.float64) for x in results)))


# ---------------------------------------------------------------- libringattn


def make_desc(api, case, sharding, num_chunks, schedule):
    """The description, and the arrays that must outlive it."""
    lists = {"alibi_slopes": case["slopes"] if "alibi" in case["has"] else None}
    if len(case["offsets_q"]) > 2:
        lists["document_offsets_q"], lists["document_offsets_kv"] = case["offsets_q"], case["offsets_kv"]
    if min(case["kv_lengths"]) < case["seqlen_kv"]:
        lists["kv_lengths"] = case["kv_lengths"]
    if case["slices"]:
        lists["mask_slices"] = [(*numbers, getattr(api, "RA_MASK_SLICE_KIND_" + kind)) for *numbers, kind in case["slices"]]
    if case["branches"]:
        lists["segment_lengths"], lists["dilations"] = zip(*case["branches"])
    arrays = {name: np.array(x, np.float32 if name == "alibi_slopes" else np.int64) for name, x in lists.items() if x is not None}
    kind, stripe = sharding
    probability, seed, offset = case["dropout"]
    desc = api.make(
        "ra_attention_desc", batch=BATCH, seqlen_q=case["seqlen_q"], seqlen_kv=case["seqlen_kv"], num_heads_q=HEADS,
        num_heads_kv=HEADS_KV, head_dim=HEAD_DIM, sharding=getattr(api, "RA_SHARDING_" + kind), stripe=stripe, num_chunks=num_chunks,
        schedule=getattr(api, "RA_SCHEDULE_" + schedule), mask=api.RA_MASK_CAUSAL if case["causal"] else api.RA_MASK_FULL,
        mask_alignment=api.RA_MASK_ALIGNMENT_BOTTOM_RIGHT if case["bottom_right"] else api.RA_MASK_ALIGNMENT_TOP_LEFT,
        window_left=case["window"][0], window_right=case["window"][1], softcap=case["softcap"],
        num_documents=len(case["offsets_q"]) - 1 if len(case["offsets_q"]) > 2 else 0,
        num_sinks=SINKS if len(case["sinks"]) else 0, has_key_bias=int("key_bias" in case["has"]), dropout_probability=probability,
        dropout_seed=seed, dropout_offset=offset, num_mask_slices=len(case["slices"]), num_branches=len(case["branches"]),
        dilation_phase=api.RA_DILATION_PHASE_INTERLEAVED_HEADS if case["interleaved"] else api.RA_DILATION_PHASE_BLOCKS_OF_HEADS,
        dilation_padding=api.RA_DILATION_PADDING_ZERO_KEYS if case["zero_keys"] else api.RA_DILATION_PADDING_MASKED,
        dilation_gradient=api.RA_DILATION_GRADIENT_CONSTANT_WEIGHTS if case["constant_weights"] else api.RA_DILATION_GRADIENT_EXACT,
        **{name: array.ctypes.data for name, array in arrays.items()})
    return desc, arrays


def kept_by_dropout(api, desc, case):
    """What weights are multiplied by: 0 or 1 / (1 - p)."""
    kept = np.ones((BATCH, HEADS, case["seqlen_q"], case["seqlen_kv"]))
    probability = np.float64(np.float32(case["dropout"][0]))
    if probability == 0:
        return kept
    row = np.zeros(case["seqlen_kv"], np.uint8)
    for entry, head, query in itertools.product(range(BATCH), range(HEADS), range(case["seqlen_q"])):
        api.call("ra_get_dropout_mask", desc, entry, head, query, 0, len(row), row.ctypes.data)
        kept[entry, head, query] = row / (1 - probability)
    return kept


# ---------------------------------------------------------------- cases


def draw_slices(random, rectangle, cuts):
    """Rectangles that a larger one is cut into, some of them left out."""
    q0, q1, k0, k1 = rectangle
    if cuts == 0:
        kinds = ("FULL", "CAUSAL", "INVERSE_CAUSAL", "BIDIRECTIONAL_CAUSAL")
        return [(q0, q1, k0, k1, kinds[random.integers(4)])] if random.random() < 0.8 else []
    if random.random() < 0.5:
        cut = int(random.integers(q0, q1 + 1))
        parts = (q0, cut, k0, k1), (cut, q1, k0, k1)
    else:
        cut = int(random.integers(k0, k1 + 1))
        parts = (q0, q1, k0, cut), (q0, q1, cut, k1)
    return [slice_ for part in parts for slice_ in draw_slices(random, part, cuts - 1)]


def draw_case(random, has, plain_mask):
    seqlen_q, seqlen_kv = LENGTHS[random.integers(len(LENGTHS))]

    def coin(chance=0.5):
        return bool(random.random() < chance)

    def offsets(length, cuts):
        return [0, *sorted(int(x) for x in random.integers(0, length + 1, cuts)), length]

    cuts = 0 if plain_mask or coin() else int(random.integers(1, 4))
    case = {
        "has": has, "seqlen_q": seqlen_q, "seqlen_kv": seqlen_kv, "offsets_q": offsets(seqlen_q, cuts), "offsets_kv": offsets(seqlen_kv, cuts),
        "bottom_right": coin(), "causal": not plain_mask and coin(),
        "window": (-1, -1) if plain_mask or coin(0.7) else (int(random.integers(-1, 12)), int(random.integers(-1, 12))),
        "kv_lengths": [seqlen_kv] * BATCH if plain_mask or coin() else [int(x) for x in random.integers(0, seqlen_kv + 1, BATCH)],
        "softcap": float(random.integers(1, 9)) / 2 if "softcap" in has else 0.0,
        "slopes": (2.0 ** -random.integers(1, 7, HEADS)).astype(np.float32) * ("alibi" in has),
        "bias": np.zeros((BATCH, seqlen_kv), np.float32), "sinks": np.zeros((0, 0), np.float32), "dropout": (0.0, 0, 0), "slices": [],
        "branches": [], "interleaved": coin(), "zero_keys": False, "constant_weights": False,
    }
    if "key_bias" in has:
        case["bias"] = np.where(random.random((BATCH, seqlen_kv)) < 0.15, -np.inf, random.standard_normal((BATCH, seqlen_kv))).astype(np.float32)
    if "sinks" in has:
        case["sinks"] = random.standard_normal((HEADS, SINKS)).astype(np.float32)
        case["sinks"][random.integers(HEADS)] = -np.inf
    if "dropout" in has:
        case["dropout"] = float(random.integers(1, 9)) / 10, int(random.integers(-(2**62), 2**62)), int(random.integers(0, 2**62))
    if "slices" in has:
        whole = (0, seqlen_q, 0, seqlen_kv)
        case["slices"] = draw_slices(random, whole, int(random.integers(1, 4))) or [(*whole, "CAUSAL")]
    if "dilation" in has:
        case["branches"] = [(int(random.integers(2, seqlen_kv + 3)), int(random.integers(1, 5))) for _ in range(random.integers(1, BRANCHES + 1))]
        case["constant_weights"] = coin()
        case["zero_keys"] = not case["causal"] and case["window"] == (-1, -1) and not case["slices"] and coin()
    return case


def all_cases(random, count):
    """Each modifier alone on a plain mask and on any, and then combinations of two and more."""
    for name, plain_mask in itertools.product(MODIFIERS, (True, False, False)):
        yield draw_case(random, {name}, plain_mask)
    for _ in range(count - 3 * len(MODIFIERS)):
        yield draw_case(random, set(random.choice(MODIFIERS, int(random.integers(2, len(MODIFIERS) + 1)), replace=False)), False)


def main():
    options = jax_oracle.parse_options(__doc__)
    api = ringattn_ctypes.load(options.so, options.header)
    random = np.random.default_rng(options.seed)
    all_ranks = [jax_oracle.Ranks(api, world_size) for world_size in (1, 2, 3, 4)]
    shardings = (("CONTIGUOUS", 1), ("ZIGZAG", 1), ("STRIPED", 1), ("STRIPED", 4))
    count = 10 * CASES if os.environ.get("RINGATTN_TEST_FULL", "0") != "0" else CASES

    errors, plain_errors, largest_lse = [], dict.fromkeys(RESULTS, 0.0), 0.0
    for number, case in enumerate(all_cases(random, count)):
        ranks, sharding, num_chunks = all_ranks[random.integers(4)], shardings[random.integers(4)], int(random.integers(0, 4))
        schedule = ("RING", "ALL_GATHER")[random.integers(2)]
        tensors = {name: random.standard_normal((BATCH, case[length], heads, HEAD_DIM)).astype(np.float32)
                   for name, length, heads in (("q", "seqlen_q", HEADS), ("k", "seqlen_kv", HEADS_KV), ("v", "seqlen_kv", HEADS_KV),
                                               ("dout", "seqlen_q", HEADS))}
        desc, arrays = make_desc(api, case, sharding, num_chunks, schedule)
        kept = kept_by_dropout(api, desc, case)
        ours = ranks.run(desc, *tensors.values(), key_bias=case["bias"] if "key_bias" in case["has"] else None, sinks=case["sinks"])
        del arrays
        exact, plain = (run_jax(np.dtype(dtype), case, kept, tensors) for dtype in (np.float64, np.float32))
        largest_lse = max(largest_lse, jax_oracle.largest_finite(exact["lse"]))
        words = f"case {number}: {', '.join(sorted(case['has']))}; {ranks.world_size} ranks, {sharding[0].lower()} {sharding[1]}, {num_chunks} chunks"
        for name in RESULTS[: len(RESULTS) if len(case["sinks"]) else -1]:
            errors.append((jax_oracle.error_of(ours[name], exact[name], 1.0), name, words, case))
            plain_errors[name] = max(plain_errors[name], jax_oracle.error_of(plain[name], exact[name], 1.0))
    for ranks in all_ranks:
        ranks.destroy()

    unit = jax_oracle.UNIT_ROUNDOFF["float32"]
    allowed = {name: 2 * max(unit if name in ("out", "lse") else unit * (1 + largest_lse), plain_errors[name]) for name in RESULTS}
    for modifier in MODIFIERS:
        ratio, name, words = max((error / allowed[name], name, words) for error, name, words, case in errors if modifier in case["has"])
        print(f"{modifier:10} {len({words for *_, words, case in errors if modifier in case['has']}):4} cases, "
              f"worst error {ratio:.2f} of the allowed ({name}; {words})")
    failures = [(error / allowed[name], name, words, case) for error, name, words, case in errors if not error <= allowed[name]]
    for ratio, name, words, case in failures:
        print(f"FAILED  {words}: error of {name} is {ratio:.3f} of what is allowed\n        {case}")
    failed = len({words for _, _, words, _ in failures})
    print(f"{count - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
