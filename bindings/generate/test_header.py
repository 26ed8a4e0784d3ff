"""The model holds all that the header declares, and refuses a header that breaks its rules. Run by CTest: bindings.header_model"""

import pathlib
import re
import tempfile
import unittest

import header as c

TEXT = c.HEADER.read_text()
CODE = re.sub(r"/\*.*?\*/", "", TEXT, flags=re.DOTALL)


def read(text: str) -> c.Header:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "ringattn.h")
        path.write_text(text)
        return c.read(path)


class Model(unittest.TestCase):
    def setUp(self):
        self.header = c.read()

    def test_holds_every_function(self):
        self.assertEqual(
            sorted(f.name for f in self.header.functions), sorted(re.findall(r"^RA_API [^;(]*?(ra_\w+)\(", CODE, re.MULTILINE))
        )

    def test_holds_every_constant_with_its_number(self):
        found = {k.name: k.value for e in self.header.enums for k in e.constants}
        self.assertEqual(found, {n: int(v) for n, v in re.findall(r"\b(RA_[A-Z0-9_]+) = (-?\d+)", CODE)})

    def test_holds_every_field(self):
        for name, body in re.findall(r"^typedef struct (ra_\w+) \{(.*?)^\}", CODE, re.MULTILINE | re.DOTALL):
            declared = re.findall(r"(\w+)(?:\[\d+\])?;", body)
            self.assertEqual([f.name for f in self.header.struct(name).fields], declared, name)

    def test_everything_but_sizes_has_a_comment(self):
        for e in self.header.enums:
            self.assertTrue(e.doc, e.name)
        for s in self.header.structs:
            self.assertTrue(s.doc, s.name)
        for f in self.header.functions:
            self.assertTrue(f.doc or f.name.startswith("ra_init_"), f.name)

    def test_fields_that_hold_constants_are_known_by_their_comments(self):
        # An int32_t whose comment speaks of an enum anywhere holds one of its constants, but for numbers that are explained by one.
        explained = {("ra_error", "rank")}
        enums = {e.name for e in self.header.enums}
        for s in self.header.structs:
            for f in s.fields:
                names = enums & set(re.findall(r"ra_\w+", f.doc))
                if f.type == "int32_t" and names and (s.name, f.name) not in explained:
                    self.assertIsNotNone(f.enum, f"{s.name}::{f.name}: {f.doc}")

    def test_records_and_their_lists(self):
        records = {s.name: s.is_input for s in self.header.records}
        self.assertEqual(
            {name for name, is_input in records.items() if is_input},
            {"ra_context_config", "ra_attention_desc", "ra_machine_rates", "ra_mha_desc", "ra_kv_cache_desc"},
        )
        desc = self.header.struct("ra_attention_desc")
        self.assertEqual(
            {f.name: str(f.count) for f in desc.fields if f.count},
            {
                "document_offsets_q": "num_documents + 1",
                "document_offsets_kv": "num_documents + 1",
                "kv_lengths": "batch",
                "alibi_slopes": "num_heads_q",
                "mask_slices": "5 * num_mask_slices",
                "segment_lengths": "num_branches",
                "dilations": "num_branches",
            },
        )
        derived = {name: [f.name for f in lists] for name, lists in desc.derived.items()}
        self.assertEqual(
            derived,
            {
                "num_documents": ["document_offsets_q", "document_offsets_kv"],
                "num_mask_slices": ["mask_slices"],
                "num_branches": ["segment_lengths", "dilations"],
            },
        )
        self.assertFalse(derived.keys() & {f.name for f in desc.values})
        append = self.header.struct("ra_append_args")
        self.assertEqual(append.derived, {"num_sequences": tuple(f for f in append.fields if f.count)})
        self.assertEqual([f.name for f in append.values], ["num_tokens", "sequences", "lengths", "positions", "k", "v", "stream"])

    def test_tensors_and_their_dtypes(self):
        backward = {f.name: f.dtype for f in self.header.struct("ra_backward_args").fields if f.dtype}
        self.assertEqual(
            backward,
            {name: "desc.dtype" for name in ("q", "k", "v")}
            | {name: "desc.out_dtype" for name in ("out", "dout")}
            | {name: "desc.grad_dtype" for name in ("dq", "dk", "dv")},
        )
        self.assertEqual({f.dtype for f in self.header.struct("ra_merge_args").fields if f.type == "ra_tensor"}, {"dtype"})
        self.assertEqual({f.name: f.dtype for f in self.header.struct("ra_append_args").fields if f.dtype}, dict.fromkeys("kv", "cache.dtype"))
        weights = {"w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o", "norm_q", "norm_k"}
        backward = {f.name: f.dtype for f in self.header.struct("ra_mha_backward_args").fields if f.dtype}
        self.assertEqual(
            backward,
            {name: "desc.dtype" for name in weights | {"x"}}
            | {"dout": "desc.out_dtype", "dx": "desc.grad_dtype"}
            | {"d" + name: c.FLOAT32 for name in weights},
        )

    def test_what_may_be_left_out(self):
        forward, backward = (self.header.struct(f"ra_mha_{name}_args").fields for name in ("forward", "backward"))
        of_some = {"b_q", "b_k", "b_v", "b_o", "norm_q", "norm_k"}
        self.assertEqual({f.name for f in forward if f.is_optional}, of_some)
        written = {f.name for f in backward if "; written;" in f.doc}
        self.assertEqual({f.name for f in backward if f.is_optional}, of_some | written)
        self.assertFalse(any(f.is_optional for f in self.header.struct("ra_forward_args").fields))

    def test_what_is_as_in_another_call(self):
        same = {f.name: f.same_in for f in self.header.struct("ra_backward_args").fields if f.same_in}
        self.assertEqual(same, dict.fromkeys(("q", "k", "v", "out", "lse", "key_bias", "sinks"), "ra_forward_args"))
        forward, backward = (self.header.struct(f"ra_mha_{name}_args").fields for name in ("forward", "backward"))
        same = {f.name for f in backward if f.same_in == "ra_mha_forward_args"}
        others = {"struct_size", "out", "activations_size", "workspace", "workspace_size", "stream"}
        self.assertEqual(same, {f.name for f in forward} - others)

    def test_comments_keep_their_paragraphs_and_tables(self):
        doc = self.header.struct("ra_attention_desc").doc
        self.assertIn("hold:\n\n    mask           RA_MASK_FULL", doc)
        self.assertIn("\n    kv_lengths     j < kv_lengths[batch entry]\n    mask_slices ", doc)
        self.assertIn("(ra_mask_slice_kind)\n\nwhere shift is 0", doc)

    def test_names_are_translated(self):
        names = c.Names(
            self.header,
            constant=lambda e, k: f"{c.type_name(e.name)}.{e.short(k)}",
            type=c.type_name,
            field=c.camel,
            function=c.camel,
            null="null",
        )
        self.assertEqual(
            names("ra_attention_desc::window_left of ra_dtype RA_DTYPE_SAME; NULL; TIMEOUT"),
            "AttentionDesc.windowLeft of DType DType.SAME; null; Status.TIMEOUT",
        )
        self.assertEqual(names("written; data is NULL if not wanted"), "written; null if not wanted")


class Rules(unittest.TestCase):
    def refused(self, pattern: str, replacement: str, words: str):
        changed, count = re.subn(pattern, replacement, TEXT, count=1)
        self.assertEqual(count, 1)
        with self.assertRaisesRegex(c.HeaderError, words):
            read(changed)

    def test_a_constant_begins_with_its_enum(self):
        self.refused(r"RA_SIDE_QUERY = 0", "RA_QUERY = 0", "RA_QUERY does not begin with RA_SIDE_")

    def test_a_list_says_how_long_it_is(self):
        self.refused(r"host, batch entries of", "some entries of", "ra_attention_desc::kv_lengths")

    def test_a_tensor_says_its_dtype(self):
        self.refused(r"shape of q, desc.grad_dtype; written", "shape of q; written", "ra_backward_args::dq")

    def test_what_is_as_in_another_call_is_there(self):
        self.refused(r"ra_tensor dq;( *)/\*\*< shape of q", r"ra_tensor dq;\1/**< as given to ra_forward, shape of q", "ra_backward_args::dq")

    def test_the_length_of_a_list_is_a_field(self):
        self.refused(r"host, batch entries of", "host, batches entries of", "'batches' entries, which is no field")


if __name__ == "__main__":
    unittest.main()
