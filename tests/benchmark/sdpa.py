"""One problem of scaled_dot_product_attention, computed by libringattn through its C API, and by PyTorch, on the same tensors.

    case = Case(Row(Shape(1, 8, 4096, 64), "bfloat16", causal=True, backward=False), device="cuda")
    ours = OurSide(Library(api, backend="cuda"), case)
    peer = PeerSide(case, SDPBackend.CUDNN_ATTENTION)         without the second, of PyTorch's choice
    peer.run(), ours.run()                                    what is timed
    case.error(ours.results)                                  against float64

Backward, run is the backward pass alone: PyTorch's graph is kept from one call to the next.
"""

import contextlib
import dataclasses

import torch
import torch.nn.attention

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    tokens: int
    dim: int
    heads_kv: int = 0  # 0: as many as heads
    dim_v: int = 0  # 0: dim

    @property
    def kv(self):
        return self.heads_kv or self.heads

    @property
    def v(self):
        return self.dim_v or self.dim

    def __str__(self):
        heads = f"{self.heads}:{self.kv}" if self.heads_kv else f"{self.heads}"
        dim = f"{self.dim}/{self.dim_v}" if self.dim_v else f"{self.dim}"
        return f"{self.batch} x {heads} x {self.tokens} x {dim}"

    def flops(self, causal):
        """Forward."""
        pairs = self.tokens * (self.tokens + 1) / 2 if causal else self.tokens**2
        return 2.0 * self.batch * self.heads * (self.dim + self.v) * pairs


@dataclasses.dataclass(frozen=True)
class Row:
    shape: Shape
    dtype: str
    causal: bool
    backward: bool
    threads: int = 1

    @property
    def mask(self):
        return "causal" if self.causal else "full"

    @property
    def direction(self):
        return "backward" if self.backward else "forward"

    @property
    def flops(self):
        return self.shape.flops(self.causal) * (2.5 if self.backward else 1)

    def __str__(self):
        return f"{self.shape}, {self.dtype}, {self.mask}, {self.direction}, {self.threads} thread(s)"


class Library:
    """A context of one rank."""

    def __init__(self, api, engine=None, threads=0, backend="cpu"):
        self.api = api
        self.backend = backend
        config = api.make("ra_context_config", num_threads=threads, world_size=1,
                          backend=api.RA_BACKEND_CUDA if backend == "cuda" else api.RA_BACKEND_CPU)
        config.engine = engine.encode() if engine else None
        self.context = api.call("ra_create_context", config)

    def close(self):
        self.api.functions.ra_destroy_context(self.context)

    def describe(self, row):
        api, shape = self.api, row.shape
        dtypes = {"float32": api.RA_DTYPE_FLOAT32, "bfloat16": api.RA_DTYPE_BFLOAT16}
        return api.make("ra_attention_desc", batch=shape.batch, seqlen_q=shape.tokens, seqlen_kv=shape.tokens,
                        num_heads_q=shape.heads, num_heads_kv=shape.kv, head_dim=shape.dim, head_dim_v=shape.v,
                        dtype=dtypes[row.dtype], mask=api.RA_MASK_CAUSAL if row.causal else api.RA_MASK_FULL)

    def arguments(self, kind, lse, **tensors):
        """Tensors are [batch, heads, tokens, dim] to PyTorch; both sides work on the same memory, and in the same stream."""
        views = {name: self.api.ra_tensor(t.data_ptr(), t.stride(0), t.stride(2), t.stride(1)) for name, t in tensors.items()}
        arguments = self.api.make(kind, **views)
        arguments.lse = lse.data_ptr()
        if self.backend == "cuda":
            arguments.stream = torch.cuda.current_stream().cuda_stream
        return arguments


class Case:
    """The inputs of a row, and how PyTorch computes them."""

    def __init__(self, row, device="cpu"):
        shape = row.shape
        generator = torch.Generator(device).manual_seed(1)

        def draw(heads, dim):
            values = torch.randn(shape.batch, heads, shape.tokens, dim, generator=generator, device=device)
            return values.to(TORCH_DTYPES[row.dtype])

        self.row = row
        self.inputs = [draw(shape.heads, shape.dim), draw(shape.kv, shape.dim), draw(shape.kv, shape.v)]
        self.dout = draw(shape.heads, shape.v)

    def attend(self, *inputs):
        return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=self.row.causal,
                                                                enable_gqa=self.row.shape.heads_kv != 0)

    def error(self, *all_results):
        """RMS against float64 of each of these results, over the first group of heads of the first batch entry."""
        group = self.row.shape.heads // self.row.shape.kv
        sizes = (group, 1, 1)
        inputs = [t[:1, :n].double().requires_grad_(self.row.backward) for t, n in zip(self.inputs, sizes)]
        expected = [self.attend(inputs[0], *(t.expand(-1, group, -1, -1) for t in inputs[1:]))]
        if self.row.backward:
            expected = torch.autograd.grad(expected[0], inputs, self.dout[:1, :group].double())

        def rms(results):
            cut = [r[:1, : e.shape[1]].double() - e for r, e in zip(results, expected)]
            return float(torch.sqrt(sum((c**2).sum() for c in cut) / sum(c.numel() for c in cut)))

        return [rms(results) for results in all_results]


class OurSide:
    def __init__(self, library, case):
        q, k, v = case.inputs
        shape = case.row.shape
        out = torch.empty_like(case.dout)
        self.kept = [case.inputs, case.dout, out]  # what the arguments point to
        self.lse = torch.empty(shape.batch, shape.heads, shape.tokens, device=out.device)
        self.gradients = [torch.empty_like(t) for t in case.inputs] if case.row.backward else []
        desc = library.describe(case.row)
        forward = library.arguments("ra_forward_args", self.lse, q=q, k=k, v=v, out=out)
        self.run = lambda: library.api.call("ra_forward", library.context, desc, forward)
        self.results = [out]
        self.run()
        if case.row.backward:
            dq, dk, dv = self.gradients
            backward = library.arguments("ra_backward_args", self.lse, q=q, k=k, v=v, out=out, dout=case.dout, dq=dq, dk=dk, dv=dv)
            self.run = lambda: library.api.call("ra_backward", library.context, desc, backward)
            self.results = self.gradients


class PeerSide:
    """With one of PyTorch's kernels (torch.nn.attention.SDPBackend), or those that it chooses. RuntimeError: it has none for this."""

    def __init__(self, case, kernel=None):
        self.case = case
        self.results = None
        self.only = (lambda: torch.nn.attention.sdpa_kernel(kernel)) if kernel is not None else contextlib.nullcontext
        if case.row.backward:
            self.leaves = [t.clone().requires_grad_() for t in case.inputs]
            with self.only():
                self.graph = case.attend(*self.leaves)

    def run(self):
        if self.case.row.backward:
            self.results = torch.autograd.grad(self.graph, self.leaves, self.case.dout, retain_graph=True)
        else:
            with torch.no_grad(), self.only():
                self.results = [self.case.attend(*self.case.inputs)]
