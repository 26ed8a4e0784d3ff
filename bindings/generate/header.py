"""What include/ringattn/ringattn.h declares, as Doxygen reads it: the model that the generators of all languages share.

    Header      version, enums, structs and functions in the order of the file
    Enum        its constants, with values and comments
    Struct      its fields. A struct of scalars that begins with struct_size and is no call's arguments is a Record: `is_input` if
                functions take it const, else the library fills it. Records reach every language whole, field by field, by generation
    Field       a C type, and what its comment says of it by the header's rules, which test_header.py holds it to:

                    /**< ra_dtype of q, k, v ...     an int32_t whose comment begins with an enum's name holds one of its constants
                    /**< 1 if ..., /**< 0: ...; 1:   an int32_t that is 0 or 1: `is_bool`
                    /**< host, <count> entries ...   a list, const int64_t * or const float *, of that many numbers; <count> is a field,
                                                     a field + 1, or n * a field. In arguments, and where by its comment that field has
                                                     the `default 0`, it follows from the list and is no field of a language
                    /**< ... desc.dtype ...          a ra_tensor of that dtype of ra_attention_desc, in arguments without a dtype of their
                                                     own; one of `fp32` is FLOAT32, and one that says neither has that of its name
                                                     in the arguments before
                    /**< ... the cache's dtype ...   a ra_tensor of the dtype of the ra_kv_cache that the call is given
                    /**< ... data is NULL ...        a ra_tensor that may be left out, `is_optional`; or it is so in the call that it is
                                                     as given to, or there `where there is` another one
                    /**< as given to ra_forward      arguments of the name, and with the value, that they have in those of that call: it
                    /**< as ra_forward wrote it      is `same_in` them
                    reserved...                       a name that begins so, which is left out

Comments come as paragraphs of text; `Names` turns the identifiers in them, and those of the declarations, into a language's own.
"""

import dataclasses
import pathlib
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "include" / "ringattn" / "ringattn.h"

FLOAT32 = "RA_DTYPE_FLOAT32"  # of tensors whatever the description says
BLOCKS = ("void *", "const void *")  # memory of any content
PLAIN = ("ra_reduce_args",)  # arguments that are parameters of the call in every language, so that none has the struct

DOXYFILE = """
INPUT = "{header}"
OUTPUT_DIRECTORY = "{output}"
GENERATE_XML = YES
GENERATE_HTML = NO
GENERATE_LATEX = NO
XML_PROGRAMLISTING = NO
QUIET = YES
WARNINGS = NO
WARN_IF_UNDOCUMENTED = NO
JAVADOC_AUTOBRIEF = NO
AUTOLINK_SUPPORT = NO
OPTIMIZE_OUTPUT_FOR_C = YES
TYPEDEF_HIDES_STRUCT = YES
MACRO_EXPANSION = YES
EXPAND_ONLY_PREDEF = YES
PREDEFINED = RA_API= __attribute__(x)=
"""


class HeaderError(Exception):
    """The header breaks a rule that generation relies on."""


@dataclasses.dataclass(frozen=True)
class Constant:
    name: str  # RA_DTYPE_FLOAT32
    value: int
    doc: str


@dataclasses.dataclass(frozen=True)
class Enum:
    name: str  # ra_dtype
    constants: tuple[Constant, ...]
    doc: str

    def short(self, constant: Constant) -> str:
        """The constant's name without that of its enum: FLOAT32."""
        return constant.name.removeprefix(self.name.upper() + "_")


@dataclasses.dataclass(frozen=True)
class Count:
    """Entries of a list: `factor` * the field + `more`."""

    field: str
    factor: int = 1
    more: int = 0
    is_derived: bool = False  # the field follows from the list

    def __str__(self) -> str:
        return f"{self.factor} * {self.field}" if self.factor > 1 else f"{self.field} + {self.more}" if self.more else self.field

    def in_words(self) -> str:
        """The same where the language has no such field."""
        what = self.field.removeprefix("num_").replace("_", " ")
        if self.more:
            return f"one entry more than there are {what}"
        return f"{self.factor} entries for each of the {what}" if self.factor > 1 else f"an entry for each of the {what}"

    def of(self, value: str) -> str:
        """The number of entries, where the field is `value`."""
        return f"{self.factor} * {value}" if self.factor > 1 else f"{value} + {self.more}" if self.more else value


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    type: str  # int64_t, const char *, ra_tensor, char[512]
    doc: str
    enum: Enum | None = None
    is_bool: bool = False
    is_reserved: bool = False
    count: Count | None = None  # of a list
    dtype: str | None = None  # of a tensor of arguments: "desc.out_dtype", "cache.dtype", or "dtype", their own, or FLOAT32
    is_optional: bool = False  # of a tensor of arguments
    same_in: str | None = None  # "ra_forward_args"

    @property
    def doc_in_words(self) -> str:
        """Its comment, without the name of a count that is no field of a language."""
        if not self.count or not self.count.is_derived:
            return self.doc
        if str(self.count) == f"num_{self.name}":  # what is counted
            return re.sub(f"^host, {self.count} entries[,:] ", "", self.doc)
        words = self.count.in_words()
        return self.doc.replace(f"{self.count} entries of", f"{words},").replace(f"{self.count} entries", words)


@dataclasses.dataclass(frozen=True)
class Struct:
    name: str  # ra_attention_desc
    fields: tuple[Field, ...]
    doc: str
    is_record: bool = False
    is_input: bool = False

    @property
    def init(self) -> str:
        """The function that fills it with defaults or clears it."""
        return "ra_init_" + self.name.removeprefix("ra_")

    @property
    def values(self) -> tuple[Field, ...]:
        """What a user sees: neither struct_size, nor what is reserved, nor a count that its list gives."""
        return tuple(f for f in self.fields if f.name != "struct_size" and not f.is_reserved and f.name not in self.derived)

    @property
    def derived(self) -> dict[str, tuple[Field, ...]]:
        """The counts that follow from lists, each with its lists."""
        lists = [f for f in self.fields if f.count and f.count.is_derived]
        return {name: tuple(f for f in lists if f.count.field == name) for name in dict.fromkeys(f.count.field for f in lists)}


@dataclasses.dataclass(frozen=True)
class Parameter:
    name: str
    type: str


@dataclasses.dataclass(frozen=True)
class Function:
    name: str
    returns: str
    parameters: tuple[Parameter, ...]
    doc: str


@dataclasses.dataclass(frozen=True)
class Header:
    version: tuple[int, int, int]
    doxygen: str  # its version
    enums: tuple[Enum, ...]
    structs: tuple[Struct, ...]
    functions: tuple[Function, ...]

    @property
    def records(self) -> tuple[Struct, ...]:
        return tuple(s for s in self.structs if s.is_record)

    def enum(self, name: str) -> Enum:
        return next(e for e in self.enums if e.name == name)

    def struct(self, name: str) -> Struct:
        return next(s for s in self.structs if s.name == name)


def text_of(element: ElementTree.Element | None) -> str:
    """A comment: its paragraphs apart by empty lines, preformatted ones indented by four."""
    paragraphs: list[str] = []
    words: list[str] = []

    def end_paragraph() -> None:
        if text := " ".join("".join(words).split()):
            paragraphs.append(text)
        words.clear()

    def visit(part: ElementTree.Element) -> None:
        if part.tag in ("verbatim", "preformatted"):
            end_paragraph()
            lines = "".join(part.itertext()).strip("\n").split("\n")
            paragraphs.append("\n".join("    " + line.rstrip() if line.strip() else "" for line in lines))
            return
        if part.tag == "para":
            end_paragraph()
        words.append(part.text or "")
        for child in part:
            visit(child)
            words.append(child.tail or "")
        if part.tag == "para":
            end_paragraph()

    if element is not None:
        visit(element)
        end_paragraph()
    return "\n\n".join(paragraphs)


def comment(member: ElementTree.Element) -> str:
    return "\n\n".join(t for t in (text_of(member.find("briefdescription")), text_of(member.find("detaileddescription"))) if t)


def flat(element: ElementTree.Element | None) -> str:
    return " ".join("".join(element.itertext()).split()) if element is not None else ""


def read_enum(member: ElementTree.Element) -> Enum:
    constants = tuple(
        Constant(flat(v.find("name")), int(flat(v.find("initializer")).removeprefix("=").strip()), comment(v))
        for v in member.findall("enumvalue")
    )
    name = flat(member.find("name"))
    for constant in constants:
        if not constant.name.startswith(name.upper() + "_"):
            raise HeaderError(f"{constant.name} does not begin with {name.upper()}_")
    return Enum(name, constants, comment(member))


def read_field(struct: str, member: ElementTree.Element, enums: dict[str, Enum]) -> Field:
    name, doc = flat(member.find("name")), comment(member)
    type_ = flat(member.find("type")) + flat(member.find("argsstring"))
    what = f"{struct}::{name}"
    begins = re.match(r"(ra_\w+)", doc)
    enum = enums.get(begins.group(1)) if begins and type_ == "int32_t" else None
    entries = re.match(r"host, (?:(\d+) \* )?(\w+)(?: \+ (1))? entries", doc)
    if type_ == "const int64_t *" and not entries:
        raise HeaderError(f"{what}: the comment of a list must begin with 'host, <count> entries'")
    return Field(
        name,
        type_,
        doc,
        enum=enum,
        is_bool=type_ == "int32_t" and (doc.startswith("1 if ") or bool(re.match(r"0: .*; 1: ", doc))),
        is_reserved=name.startswith("reserved"),
        count=Count(entries[2], int(entries[1] or 1), int(entries[3] or 0)) if entries else None,
    )


def dtype_of(struct: str, field: Field, own: dict[str, str], given: dict[str, str | None]) -> str | None:
    """Which dtype a tensor has, FLOAT32 where it is fp32; `own` are the fields of its struct, `given` the dtypes of those before it."""
    if field.type != "ra_tensor":
        return None
    said = re.search(r"\b(desc|cache)\.\w*dtype\b", field.doc.replace("the cache's dtype", "cache.dtype"))
    fp32 = FLOAT32 if re.search(r"\bfp32\b", field.doc) else None
    dtype = "dtype" if "dtype" in own else said[0] if said else fp32 or given.get(field.name)
    if dtype is None:
        raise HeaderError(f"{struct}::{field.name}: the comment does not say which dtype it has")
    return dtype


def read_argument(struct: str, field: Field, fields: tuple[Field, ...], before: dict[str, dict[str, Field]]) -> Field:
    """The field with what its comment says of it as an argument; `before` are the arguments of other calls, by their structs."""
    as_in = re.match(r"as (?:given to (ra_\w+)|(ra_\w+) wrote it)", field.doc)
    same_in = f"{as_in[1] or as_in[2]}_args" if as_in else None
    if same_in and field.name not in before.get(same_in, {}):
        raise HeaderError(f"{struct}::{field.name} is as in {same_in}, which has no such field before")
    own, given = {f.name: f.doc for f in fields}, {name: f.dtype for fs in before.values() for name, f in fs.items() if f.dtype}
    says_so = bool(re.search(r"\bdata is NULL\b|\bwhere there is\b", field.doc))
    return dataclasses.replace(
        field,
        dtype=dtype_of(struct, field, own, given),
        is_optional=field.type == "ra_tensor" and (says_so or bool(same_in and before[same_in][field.name].is_optional)),
        same_in=same_in,
    )


def read(header: pathlib.Path = HEADER) -> Header:
    """Reads the header; HeaderError where it breaks a rule."""
    with tempfile.TemporaryDirectory() as folder:
        doxyfile = pathlib.Path(folder) / "Doxyfile"
        doxyfile.write_text(DOXYFILE.format(header=header, output=folder))
        subprocess.run(["doxygen", doxyfile], check=True, cwd=folder)
        root = ElementTree.parse(next(pathlib.Path(folder, "xml").glob("*_8h.xml"))).getroot()
        compounds = {
            flat(c.find("compoundname")): c
            for path in pathlib.Path(folder, "xml").glob("struct*.xml")
            for c in ElementTree.parse(path).getroot().findall("compounddef")
        }

    def members(element: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
        return sorted(
            (m for m in element.iter("memberdef") if m.get("kind") == kind), key=lambda m: int(m.find("location").get("line"))
        )

    macros = {flat(m.find("name")): flat(m.find("initializer")) for m in members(root, "define")}
    enums = {e.name: e for e in map(read_enum, members(root, "enum"))}
    functions = tuple(
        Function(
            flat(m.find("name")),
            flat(m.find("type")),
            tuple(Parameter(flat(p.find("declname")), flat(p.find("type"))) for p in m.findall("param") if flat(p.find("type")) != "void"),
            comment(m),
        )
        for m in members(root, "function")
    )
    taken_const = {p.type for f in functions for p in f.parameters}
    structs = []
    for name, compound in sorted(compounds.items(), key=lambda item: int(item[1].find("location").get("line"))):
        fields = tuple(read_field(name, m, enums) for m in members(compound, "variable"))
        docs = {f.name: f.doc for f in fields}
        for n, field in enumerate(fields):
            if not field.count:
                continue
            if field.count.field not in docs:
                raise HeaderError(f"{name}::{field.name} has '{field.count}' entries, which is no field")
            is_derived = name.endswith("_args") or bool(re.search(r"\bdefault 0\b", docs[field.count.field]))
            replaced = dataclasses.replace(field, count=dataclasses.replace(field.count, is_derived=is_derived))
            fields = (*fields[:n], replaced, *fields[n + 1 :])
        if name.endswith("_args"):
            before = {s.name: {f.name: f for f in s.fields} for s in structs if s.name.endswith("_args")}
            fields = tuple(read_argument(name, f, fields, before) for f in fields)
        is_scalar = not any(f.type in compounds for f in fields)
        is_record = fields[0].name == "struct_size" and is_scalar and not name.endswith("_args")
        structs.append(Struct(name, fields, comment(compound), is_record, is_record and f"const {name} *" in taken_const))
    return Header(
        version=tuple(int(macros[f"RA_VERSION_{part}"]) for part in ("MAJOR", "MINOR", "PATCH")),
        doxygen=root.get("version").split()[0],
        enums=tuple(enums.values()),
        structs=tuple(structs),
        functions=functions,
    )


# ---------------------------------------------------------------- names


def camel(name: str) -> str:
    """num_heads_q -> numHeadsQ"""
    first, *rest = name.lower().split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def pascal(name: str) -> str:
    """num_heads_q -> NumHeadsQ"""
    return "".join(word[:1].upper() + word[1:] for word in name.lower().split("_"))


def type_name(name: str) -> str:
    """ra_attention_desc -> AttentionDesc; ra_dtype -> DType"""
    return {"ra_dtype": "DType"}.get(name, pascal(name.removeprefix("ra_")))


class Names:
    """Rewrites the C identifiers in a comment. Each argument turns what it names into the language's word for it."""

    def __init__(self, header: Header, *, constant, type, field, function, null, true="true", false="false"):
        self.header, self.field = header, field
        self.words = {"NULL": null}
        for enum in header.enums:
            self.words[enum.name] = type(enum.name)
            for c in enum.constants:
                self.words[c.name] = constant(enum, c)
                if enum.name == "ra_status":
                    self.words.setdefault(enum.short(c), constant(enum, c))
        for struct in header.structs:
            self.words[struct.name] = type(struct.name)
        for f in header.functions:
            self.words[f.name] = function(f.name)
        self.fields = {f.name for s in header.structs for f in s.fields if "_" in f.name}

    def __call__(self, text: str) -> str:
        def word(match: re.Match) -> str:
            w = match.group(0)
            if w in self.words:
                return self.words[w]
            return self.field(w) if w in self.fields else w

        text = text.replace("data is NULL", "NULL")  # a tensor without data is none
        text = re.sub(r"\b(ra_\w+)::(\w+)\b", lambda m: f"{self.words.get(m[1], m[1])}.{self.field(m[2])}", text)
        return re.sub(r"\b[A-Za-z]\w*\b", word, text)
