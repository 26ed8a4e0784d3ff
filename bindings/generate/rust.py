"""Rust: the declarations of ringattn-sys, by bindgen, and of the crate ringattn what follows from the header.

    ringattn-sys/src/bindings.rs    as its build script writes it with the feature bindgen
    ringattn/src/generated/         enums.rs, records.rs: types with conversions from and to those of C. docs.rs: what the header says of
                                    functions and of fields of other structs, for the comments of what is written by hand
    ringattn/tests/generated/       fields of the input records by name, for the conformance suite
    Cargo.toml                      the library's version, in its lines that say so; the rest is written by hand

All of it is written as rustfmt lays it out.
"""

import json
import os
import pathlib
import re
import subprocess
import textwrap

import header as c

RUST = pathlib.Path("bindings/rust")
FOLDERS = (f"{RUST}/ringattn/src/generated", f"{RUST}/ringattn/tests/generated")

# Where in the crate a function or struct of C is. One that is new in the header must be given a place here.
PLACES = {
    "ra_get_status_name": "Status::name",
    "ra_get_version": "version",
    "ra_create_unique_id": "UniqueId::new",
    "ra_create_context": "Context::new",
    "ra_destroy_context": "drop",
    "ra_abort_context": "AbortHandle::abort",
    "ra_get_async_error": "Context::async_error",
    "ra_get_context_info": "Context::info",
    "ra_get_capabilities": "capabilities",
    "ra_check_support": "Context::check_support",
    "ra_get_memory_requirements": "Context::memory_requirements",
    "ra_estimate_memory": "estimate_memory",
    "ra_estimate_time": "estimate_time",
    "ra_get_call_statistics": "Context::statistics",
    "ra_get_shard_length": "AttentionDesc::shard_length",
    "ra_get_shard_position": "AttentionDesc::shard_position",
    "ra_get_shard_positions": "AttentionDesc::shard_positions",
    "ra_get_dropout_mask": "AttentionDesc::dropout_mask",
    "ra_split_sequence": "AttentionDesc::split_sequence",
    "ra_join_sequence": "AttentionDesc::join_sequence",
    "ra_forward": "Context::forward",
    "ra_backward": "Context::backward",
    "ra_mha_forward": "Context::mha_forward",
    "ra_mha_backward": "Context::mha_backward",
    "ra_get_mha_requirements": "Context::mha_requirements",
    "ra_all_reduce": "Context::all_reduce",
    "ra_merge_attention": "merge_attention",
    "ra_create_kv_cache": "KvCache::new",
    "ra_destroy_kv_cache": "drop",
    "ra_create_sequence": "KvCache::create_sequence",
    "ra_fork_sequence": "KvCache::fork_sequence",
    "ra_truncate_sequence": "KvCache::truncate_sequence",
    "ra_free_sequence": "KvCache::free_sequence",
    "ra_get_sequence_length": "KvCache::sequence_length",
    "ra_get_lost_tokens": "KvCache::lost_tokens",
    "ra_get_kv_cache_statistics": "KvCache::statistics",
    "ra_move_kv_cache": "KvCache::move_to",
    "ra_append": "Context::append",
    "ra_decode": "Context::decode",
    "ra_run_self_test": "Context::run_self_test",
    "ra_set_log_callback": "set_log",
    "ra_error": "Error",
    "ra_unique_id": "UniqueId",
    "ra_tensor": "Tensor",
    "ra_sequence_args": "SplitArgs",
    "ra_forward_args": "ForwardArgs",
    "ra_backward_args": "BackwardArgs",
    "ra_mha_forward_args": "MhaForwardArgs",
    "ra_mha_backward_args": "MhaBackwardArgs",
    "ra_reduce_args": "Context::all_reduce",
    "ra_merge_args": "MergeArgs",
    "ra_append_args": "AppendArgs",
    "ra_decode_args": "DecodeArgs",
    "ra_context": "Context",
    "ra_kv_cache": "KvCache",
    "ra_log_callback": "LogCallback",
}

# Arguments that are in a struct of their own there: the field that it is, and how their names begin.
PARTS = {"weights": ("w_", "b_", "norm_"), "gradients": ("dw_", "db_", "dnorm_")}

# What identifiers alone would put badly.
PHRASES = {
    "ra_get_version()": "that of the library, in a number: major * 10000 + minor * 100 + patch",
    "A tensor without elements may have NULL data": "The slice of a tensor without elements is empty",
    "with rank -1 where": "without a rank where",
    "or -1 with error filled": "or an error",
    "Returns -1 with error filled on": "Errors:",
    "context: the cache's own": "The context is the cache's own",
}

LISTS = {"const int64_t *": "Vec<i64>", "const float *": "Vec<f32>"}
SCALARS = {"int32_t": "i32", "int64_t": "i64", "size_t": "usize", "float": "f32", "double": "f64"}


def generate(header: c.Header) -> dict[str, str]:
    docs = Docs(header)
    crate = RUST / "ringattn"
    return {
        str(path): text
        for path, text in (
            (RUST / "Cargo.toml", manifest(header)),
            (RUST / "ringattn-sys/src/bindings.rs", bindings(header)),
            (crate / "src/generated/enums.rs", enums(header, docs)),
            (crate / "src/generated/records.rs", records(header, docs)),
            (crate / "src/generated/docs.rs", c_docs(header, docs)),
            (crate / "tests/generated/fields.rs", fields(header)),
        )
    }


def opening(header: c.Header) -> list[str]:
    return [f"// Generated from ringattn.h by ./dev bindings (Doxygen {header.doxygen}). Not edited by hand.", ""]


def manifest(header: c.Header) -> str:
    """The workspace's Cargo.toml, with the library's version wherever a line says that it is that."""
    version = ".".join(map(str, header.version))
    text, count = re.subn(r'"=?[\d.]+"(.*# the library\'s)$', rf'"{version}"\1', (c.ROOT / RUST / "Cargo.toml").read_text(), flags=re.M)
    if count != 2:
        raise c.HeaderError(f"{RUST}/Cargo.toml has {count} lines that end in \"# the library's\"; must be 2, with the version")
    return text


def bindings(header: c.Header) -> str:
    """What the build script of ringattn-sys makes of the header."""
    command = ["cargo", "check", "--quiet", "--message-format=json", "--package=ringattn-sys", "--features=ringattn-sys/bindgen"]
    command += [f"--manifest-path={c.ROOT / RUST / 'Cargo.toml'}", f"--target-dir={c.ROOT / 'build/bindings/rust/generate'}"]
    # The script needs no library where only documentation is built.
    run = subprocess.run(command, env={**os.environ, "DOCS_RS": "1"}, stdout=subprocess.PIPE, check=True, text=True)
    for message in map(json.loads, run.stdout.splitlines()):
        if message["reason"] == "build-script-executed" and "ringattn-sys" in message["package_id"]:
            text = (pathlib.Path(message["out_dir"]) / "bindings.rs").read_text()
            return "// Generated from ringattn.h by ./dev bindings. Not edited by hand.\n" + text
    raise c.HeaderError("cargo did not say where the build script of ringattn-sys wrote to")


# ---------------------------------------------------------------- comments


class Docs:
    """Comments of the header as Markdown, in which the names of C are links to what they are here."""

    def __init__(self, header: c.Header):
        self.header = header
        for function in header.functions:
            if function.name not in PLACES and not function.name.startswith("ra_init_"):
                raise c.HeaderError(f"{function.name} is new: rust.py must say in PLACES where it is in Rust")
        # «...» becomes a link, ‹...› is only code.
        self.names = c.Names(
            header,
            constant=lambda enum, k: self.link("Ok" if k.name == "RA_STATUS_SUCCESS" else f"{c.type_name(enum.name)}::{variant(enum, k)}"),
            type=lambda name: self.link(PLACES.get(name, c.type_name(name))),
            field=lambda name: f"‹{name}›",
            function=lambda name: self.link(PLACES.get(name) or c.type_name(name.removeprefix("ra_init_")) + "::new"),
            null="‹None›",
        )
        self.names.words |= {name: self.link(place) for name, place in PLACES.items()} | {"ra_stream": "‹cudaStream_t›"}

    @staticmethod
    def link(place: str) -> str:
        return f"‹{place}›" if place in ("Ok", "drop") else f"«{place}»"

    def markdown(self, text: str, qualified: bool = False) -> list[str]:
        """`qualified`: links hold where the names are not in scope."""
        for phrase, better in PHRASES.items():
            text = text.replace(phrase, better)
        lines: list[str] = []
        for paragraph in text.split("\n\n"):
            if lines:
                lines.append("")
            if paragraph.startswith("    "):  # preformatted
                plain = re.sub("[«»‹›]", "", self.names(textwrap.dedent(paragraph)).replace("».‹", "::"))
                lines += ["```text", *(line.rstrip() for line in plain.split("\n")), "```"]
                continue
            paragraph = re.sub(r"`(\w+->)?(\w+)`", r"\2", paragraph)  # names get their marks below
            paragraph = self.names(re.sub(r"([\[\]*]|^[>#+-])", r"\\\1", paragraph)).replace("‹‹", "‹").replace("››", "›")
            paragraph = re.sub(r"\b(desc|mha)\.‹", r"‹\1.", paragraph)
            paragraph = re.sub("«([^»]+)»[.]‹([^›]+)›", r"«\1::\2»", paragraph.replace("«UniqueId».‹text›", "«UniqueId»"))
            paragraph = re.sub("«([^»]+)»", r"[`\1`](crate::\1)" if qualified else r"[`\1`]", paragraph)
            paragraph = re.sub("‹([^›]+)›", r"`\1`", paragraph)
            # A line must not begin with what Markdown takes for a list or a heading.
            paragraph = re.sub(r" (?=([-+#>]|\d+[.)])( |$))", "\0", paragraph)
            wrapped = textwrap.wrap(paragraph, 92, break_long_words=False, break_on_hyphens=False)
            lines += [line.replace("\0", " ") for line in wrapped]
        if lines and re.match(r"[a-z]+\b(?![_\\])", lines[0]):  # not a name
            lines[0] = lines[0][:1].upper() + lines[0][1:]
        return lines

    def comment(self, text: str, indent: str = "") -> list[str]:
        text = re.sub(r"^1 if ", "Whether ", text)
        if text[-1] not in ".:":
            text += "."
        return [f"{indent}/// {line}".rstrip() for line in self.markdown(text)]


def field_doc(docs: Docs, field: c.Field) -> list[str]:
    """Its comment, or that of the first record that has one for a field of this name."""
    alike = [f"as {r.name}::{f.name}" for r in docs.header.records for f in r.fields if f.name == field.name and f.doc]
    doc = field.doc or alike[0]
    for record in docs.header.records:
        if field in record.fields and field.count and field.count.is_derived:
            doc = field.doc_in_words
            if field is record.derived[field.count.field][0]:  # it says the count, too
                count = next(f for f in record.fields if f.name == field.count.field)
                doc = f"{doc}. {count.name}, which follows from it: {count.doc}"
    return docs.comment(doc, "    ")


def c_docs(header: c.Header, docs: Docs) -> str:
    lines = opening(header) + ["/// What the header says of a function, struct or field.", "macro_rules! c_doc {"]
    texts = {function.name: function.doc for function in header.functions}
    texts |= {struct.name: struct.doc for struct in header.structs}
    texts |= {f"{struct.name}::{field.name}": field.doc_in_words for struct in header.structs for field in struct.fields}
    sources = (c.ROOT / RUST / "ringattn/src").glob("*.rs")
    for name in sorted({name for path in sources for name in re.findall(r"c_doc!\((\w+(?:::\w+)?)\)", path.read_text())}):
        lines += [f"    ({name}) => {{", '        r#"' + "\n".join(docs.markdown(texts[name], qualified=True)) + '"#', "    };"]
    return "\n".join([*lines, "}", "pub(crate) use c_doc;", ""])


# ---------------------------------------------------------------- enums


def variant(enum: c.Enum, constant: c.Constant) -> str:
    return c.pascal(enum.short(constant))


def enums(header: c.Header, docs: Docs) -> str:
    lines = opening(header) + ["use crate::choice::choice;", "use crate::sys;", "#[allow(unused_imports)] // in comments", "use crate::*;"]
    for enum in header.enums:
        name = c.type_name(enum.name)
        lines += ["", "choice! {", *docs.comment(enum.doc, "    "), f"    {name}, \"{enum.name.removeprefix('ra_')}\";"]
        for k in enum.constants:
            lines += docs.comment(k.doc or f"{enum.short(k)}", "    ")
            lines.append(f'    {variant(enum, k)} = sys::{k.name}, "{enum.short(k)}";')
        lines.append("}")
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- records


def is_unique_id(field: c.Field) -> bool:
    return field.type == "const char *" and field.doc.startswith("ra_unique_id::text")


def rust_type(record: c.Struct, field: c.Field) -> str:
    if field.enum:
        return c.type_name(field.enum.name)
    if field.is_bool:
        return "bool"
    if field.type in SCALARS:
        return SCALARS[field.type]
    if record.is_input:
        if is_unique_id(field):
            return "Option<UniqueId>"
        if field.type == "const char *":
            return "Option<String>"
        if field.count:
            return f"Option<{LISTS[field.type]}>"
        if field.type == "void *":
            return "Pointer"
    elif field.type.startswith("char["):
        return "String"
    raise c.HeaderError(f"{record.name}::{field.name} is {field.type}, which rust.py has no type for")


def from_c(record: c.Struct, field: c.Field) -> str:
    """The value in Rust of a field of `raw`; of an input, its default, where pointers are NULL."""
    type_ = rust_type(record, field)
    if field.enum:
        return f"{type_}::from_raw(raw.{field.name})"
    if type_.startswith("Option"):
        return "None"
    return {"bool": "raw.{} != 0", "String": "text(&raw.{})", "Pointer": "Pointer(raw.{})"}.get(type_, "raw.{}").format(field.name)


def to_c(record: c.Struct, field: c.Field) -> str:
    name = field.name
    if name == "struct_size":
        return f"struct_size: size_of::<sys::{record.name}>()"
    if field.is_reserved:
        return f"{name}: 0"
    type_ = rust_type(record, field)
    if field.enum:
        return f"{name}: self.{name} as i32"
    if name in record.derived:  # the caller made it of the list's entries
        return name if field.type == "int64_t" else f"{name}: {name} as {SCALARS[field.type]}"
    return {
        "bool": "{0}: i32::from(self.{0})",
        "Pointer": "{0}: self.{0}.0",
        **{f"Option<{list_}>": "{0}: entries(&self.{0})" for list_ in LISTS.values()},
        "Option<String>": "{0}: characters(&{0})",
        "Option<UniqueId>": "{0}: characters(&{0})",
    }.get(type_, "{0}: self.{0}").format(name)


def setter(record: c.Struct, field: c.Field, docs: Docs) -> list[str]:
    name, type_ = field.name, rust_type(record, field)
    if type_ == "Pointer":
        return [
            "",
            f"    /// Sets `{name}`.",
            "    ///",
            "    /// # Safety",
            "    ///",
            "    /// It is null, or the object of C that is described here, and what is said of it here holds:",
            "    ///",
            *[line.replace("/// ", "/// > ", 1) for line in field_doc(docs, field)],
            f"    pub unsafe fn {name}(mut self, {name}: *mut c_void) -> Self {{",
            f"        self.{name} = Pointer({name});",
            "        self",
            "    }",
        ]
    inner = {"Option<String>": "String", "Option<UniqueId>": "UniqueId", **{f"Option<{v}>": v for v in LISTS.values()}}.get(type_)
    given = f"impl Into<{inner}>" if inner else type_
    value = f"Some({name}.into())" if inner else name
    return [
        "",
        f"    /// Sets [`{name}`](#structfield.{name}).",
        f"    pub fn {name}(mut self, {name}: {given}) -> Self {{",
        f"        self.{name} = {value};",
        "        self",
        "    }",
    ]


def check_entries(field: c.Field, count: str) -> list[str]:
    arguments = [f'"{field.name}"', f"&self.{field.name}", f'"{field.count}"', count]
    return checked("check_entries", arguments)


def checked(function: str, arguments: list[str]) -> list[str]:
    """A call that may fail, as rustfmt lays it out."""
    inside = ", ".join(arguments)
    if len(inside) <= 60:
        return [f"        {function}({inside})?;"]
    return [f"        {function}(", *(f"            {a}," for a in arguments), "        )?;"]


DTYPE_OWNERS = {"desc": "AttentionDesc", "cache": "KvCacheDesc"}  # whose dtype a tensor may have


def dtype_owner(field: c.Field) -> str:
    owner, dot, _ = (field.dtype or "").partition(".")
    return owner if dot else ""


def check_dtypes(struct: c.Struct) -> list[str]:
    """The dtypes that the tensors of a call must have, where its description, or that of the cache, says them."""
    owner = next(o for f in struct.fields if (o := dtype_owner(f)))
    lines = ["", f"impl {PLACES[struct.name]}<'_> {{", f"    /// Refuses tensors of other dtypes than `{owner}` has."]
    lines += [f"    pub(crate) fn check_dtypes(&self, {owner}: &{DTYPE_OWNERS[owner]}) -> Result<()> {{"]
    for field in (f for f in struct.fields if f.dtype):
        of = field.dtype.removeprefix("desc.")
        own = field.dtype if of in ("dtype", "cache.dtype") else f"desc.{of}.or(desc.dtype)"
        place = ".".join(["self", *(part for part, names in PARTS.items() if field.name.startswith(names)), field.name])
        tensor = field.name if field.is_optional else place
        if field.dtype == c.FLOAT32:
            lines_of_field = checked("check_float32", [f'"{field.name}"', f"{tensor}.dtype"])
        else:
            lines_of_field = checked("check_dtype", [f'"{field.name}"', f"{tensor}.dtype", f'"{of}"', own])
        if field.is_optional:
            lines_of_field = [f"        if let Some({tensor}) = &{place} {{", *("    " + line for line in lines_of_field), "        }"]
        lines += lines_of_field
    return [*lines, "        Ok(())", "    }", "}"]


def input_record(record: c.Struct, docs: Docs) -> list[str]:
    name = c.type_name(record.name)
    lines = [*docs.comment(record.doc), "#[derive(Clone, Debug, PartialEq)]", "#[non_exhaustive]", f"pub struct {name} {{"]
    for field in record.values:
        type_ = rust_type(record, field)
        if type_ == "Pointer":
            lines.append(f"    {field.name}: Pointer,")
        else:
            lines += [*field_doc(docs, field), f"    pub {field.name}: {type_},"]
    lines += ["}", "", f"impl {name} {{", "    /// The library's defaults.", "    pub fn new() -> Self {"]
    lines += [f"        let raw = defaults(sys::{record.init});", "        Self {"]
    for field in record.values:
        value = from_c(record, field)
        lines.append(f"            {field.name}: {value},")
    lines += ["        }", "    }"]
    for field in record.values:
        lines += setter(record, field, docs)

    lines += ["", "    /// Calls `call` with the record as C has it, which lives as long as the call."]
    lines += ["    pub(crate) fn with_raw<R>(", "        &self,", f"        call: impl FnOnce(&sys::{record.name}) -> Result<R>,"]
    lines += ["    ) -> Result<R> {"]
    for field in (f for f in record.fields if f.count):
        count = field.count
        is_first = count.is_derived and field is record.derived[count.field][0]  # it says what the count is
        if is_first:
            value = f"(count - {count.more})" if count.more and count.factor > 1 else f"count - {count.more}" if count.more else "count"
            value += f" / {count.factor}" if count.factor > 1 else ""
            made = f"count_entries(&self.{field.name})" + (".unwrap_or(0)" if value == "count" else f".map_or(0, |count| {value})")
            lines.append(f"        let {count.field} = {made};")
        if not is_first or count.factor > 1:
            lines += check_entries(field, count.of(count.field if count.is_derived else f"self.{count.field}"))
    for field in record.values:
        if rust_type(record, field) in ("Option<String>", "Option<UniqueId>"):
            lines.append(f'        let {field.name} = c_string("{field.name}", &self.{field.name})?;')
    lines += [f"        let raw = sys::{record.name} {{", *(f"            {to_c(record, f)}," for f in record.fields), "        };"]
    lines += ["        call(&raw)", "    }", "}", "", f"impl Default for {name} {{", "    fn default() -> Self {"]
    return lines + ["        Self::new()", "    }", "}"]


def output_record(record: c.Struct, docs: Docs) -> list[str]:
    name = c.type_name(record.name)
    lines = [*docs.comment(record.doc), "#[derive(Clone, Debug, PartialEq)]", "#[non_exhaustive]", f"pub struct {name} {{"]
    for field in record.values:
        lines += [*field_doc(docs, field), f"    pub {field.name}: {rust_type(record, field)},"]
    lines += ["}", "", f"impl {name} {{", "    /// What `fill`, a function of the library, fills the record with."]
    lines += ["    pub(crate) fn filled(", f"        fill: impl FnOnce(*mut sys::{record.name}, *mut sys::ra_error) -> sys::ra_status,"]
    lines += ["    ) -> Result<Self> {", f"        let mut raw = defaults(sys::{record.init});"]
    lines += ["        call(|error| fill(&mut raw, error))?;", "        Ok(Self {"]
    for field in record.values:
        lines.append(f"            {field.name}: {from_c(record, field)},")
    return lines + ["        })", "    }", "}"]


def records(header: c.Header, docs: Docs) -> str:
    lines = opening(header) + [
        "use std::ffi::c_void;",
        "use std::mem::size_of;",
        "",
        "use crate::error::call;",
        "use crate::record::*;",
        "use crate::tensor::{check_dtype, check_float32};",
        "use crate::*;",
    ]
    for record in header.records:
        lines += ["", *(input_record if record.is_input else output_record)(record, docs)]
    for struct in header.structs:
        if any(map(dtype_owner, struct.fields)):
            lines += check_dtypes(struct)
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- tests


def fields(header: c.Header) -> str:
    lines = opening(header) + [
        "use ringattn::*;",
        "use serde_json::Value;",
        "",
        "use crate::json::{choice, list, number, text};",
    ]
    for record in header.records:
        if not record.is_input:
            continue
        name = c.type_name(record.name)
        lines += ["", "/// Sets a field by its name in C.", f"pub fn set_{record.name.removeprefix('ra_')}(record: &mut {name}, field: &str, value: &Value) {{"]
        lines.append("    match field {")
        for field in record.values:
            type_ = rust_type(record, field)
            if type_ == "Pointer":
                continue
            read = {"Option<String>": "text(value)", "Option<UniqueId>": "text(value).map(UniqueId::from)", **{f"Option<{v}>": "list(value)" for v in LISTS.values()}}
            value = "choice(value)" if field.enum else read.get(type_, "number(value)")
            lines.append(f'        "{field.name}" => record.{field.name} = {value},')
        lines += [f'        _ => panic!("{record.name} has no field {{field}}"),', "    }", "}"]
    return "\n".join([*lines, ""])
