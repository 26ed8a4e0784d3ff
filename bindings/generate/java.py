"""Java: package dev.ringattn.internal and its JNI functions by SWIG; enums, records and arguments of package dev.ringattn.

What functions only read (a desc, a config, args) is a class with a setter for each field. Its C struct is made when a call first asks
for it and never changed afterwards: a setter forgets it, so a call that runs keeps what it began with. What the library fills is a
record.

Beyond the rules of header.py, a field's C type says what it is in Java:

    ra_tensor                         a Tensor. If its comment says `written`, not of a read-only buffer
    a list                            long... or float...
    float *, const float * else       a packed Tensor of FLOAT32; without const, not of a read-only buffer
    void *x, with size_t x_size       a direct buffer, or what is in OWNED, or an address and a size
    what is same_in other arguments   a constructor that takes those
    size_t x_size                     of a void *: above. Of a float *: the bytes of the shortest of those whose names begin with x
    const char *                      a String, or what the comment begins with: ra_unique_id::text is a UniqueId
    void *, ra_stream                 an address: long

The version in Maven's files is the header's, too.
"""

import html
import pathlib
import re
import subprocess
import tempfile
import textwrap

import header as c

FOLDERS = ("bindings/java/src/generated",)
JAVA = "bindings/java/src/generated/java/dev/ringattn"
VERSIONED = ("bindings/java/pom.xml", "bindings/java/README.md")
WIDTH = 100

# The functions' places in Java: of a cache or a context where they take one, else of RingAttention; but
PLACES = {
    "ra_create_context": "new Context",
    "ra_destroy_context": "Context.close",
    "ra_abort_context": "Context.abort",
    "ra_get_context_info": "Context.info",
    "ra_get_call_statistics": "Context.statistics",
    "ra_create_kv_cache": "new KvCache",
    "ra_destroy_kv_cache": "KvCache.close",
    "ra_fork_sequence": "KvCache.fork",
    "ra_truncate_sequence": "KvCache.truncate",
    "ra_free_sequence": "KvCache.free",
    "ra_get_sequence_length": "KvCache.length",
    "ra_get_kv_cache_statistics": "KvCache.statistics",
    "ra_move_kv_cache": "KvCache.moveTo",
    "ra_create_unique_id": "UniqueId.create",
    "ra_get_status_name": "Status.name",
}


# Blocks of memory with a type of their own.
OWNED = {"activations": "Activations"}

# Whose dtypes tensors have: what a Field's dtype begins with, and its class.
DESCRIPTIONS = {"desc": "AttentionDesc", "cache": "KvCacheDesc"}


def place(function: c.Function) -> str:
    if function.name in PLACES:
        return PLACES[function.name]
    if function.name.startswith("ra_init_"):
        return "new " + c.type_name("ra_" + function.name.removeprefix("ra_init_"))
    owners = {"ra_kv_cache *": "KvCache", "ra_context *": "Context"}
    owner = next((o for type_, o in owners.items() if any(type_ in p.type for p in function.parameters)), "RingAttention")
    return f"{owner}." + c.camel(re.sub("^ra_(get_)?", "", function.name))


def type_name(name: str) -> str:
    return "RingAttentionException" if name == "ra_error" else c.type_name(name)


# ---------------------------------------------------------------- comments


def javadoc(text: str, indent: int = 0, tags: tuple[tuple[str, str], ...] = ()) -> list[str]:
    """The comment of paragraphs `text`, with tags as ("param x", text)."""
    width = WIDTH - indent - 3
    lines: list[str] = []
    for n, paragraph in enumerate(text.split("\n\n")):
        if lines:
            lines.append("")
        if paragraph.startswith("    "):
            block = textwrap.dedent(html.escape(paragraph, quote=False)).split("\n")
            lines += ["<pre>", *block, "</pre>"]
        else:
            lines += textwrap.wrap(("<p>" if n else "") + html.escape(paragraph, quote=False), width)
    if tags and lines:
        lines.append("")
    for tag, words in tags:
        lines += textwrap.wrap(f"@{tag} {html.escape(words, quote=False)}", width, subsequent_indent="    ")
    pad = " " * indent
    if len(lines) == 1 and len(lines[0]) <= width - 4:
        return [f"{pad}/** {lines[0]} */"]
    return [f"{pad}/**", *(f"{pad} * {line}".rstrip() for line in lines), f"{pad} */"]


def sentence(text: str) -> str:
    if re.match(r"[a-z]+\b", text):  # not a name
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def fit(line: str) -> list[str]:
    """A statement, where it is too long broken behind its first parenthesis; arguments that need more have a line each."""
    at = line.find("(") + 1
    if len(line) <= WIDTH or not at:
        return [line]
    pad, rest = " " * (len(line) - len(line.lstrip()) + 4), line[at:]
    arguments, depth = [""], 0
    for character in rest:
        depth += {"(": 1, ")": -1}.get(character, 0)
        arguments[-1] += character
        if character == "," and depth == 0:
            arguments.append("")
    if len(pad + rest) <= WIDTH or len(arguments) == 1:
        return [line[:at], *fit(pad + rest)]
    return [line[:at], *(pad + argument.strip() for argument in arguments)]


class Writer:
    def __init__(self, header: c.Header):
        self.header = header
        words = dict(
            constant=lambda enum, k: f"{type_name(enum.name)}.{enum.short(k)}",
            type=type_name,
            field=c.camel,
            function=lambda name: place(next(f for f in header.functions if f.name == name)),
        )
        self.of_object, self.of_address = (c.Names(header, **words, null=null) for null in ("null", "0"))
        # Those enums of which the library itself gives values, maybe newer ones than these.
        given = {f.enum.name for s in header.records if not s.is_input for f in s.fields if f.enum}
        self.open_enums = given | {"ra_status", "ra_log_level"}

    def names(self, text: str, type_: str = "") -> str:
        """With the names of Java; the columns of preformatted text stay where they are."""
        translate = self.of_address if NUMBERS.get(type_) == "long" else self.of_object

        def columns(match: re.Match) -> str:
            first = translate(match[1])
            return first + " " * max(2, len(match[0]) - len(first))

        paragraphs = text.split("\n\n")
        for n, paragraph in enumerate(paragraphs):
            if paragraph.startswith("    "):
                lines = (re.match(r"( *\S+ {2,})?(.*)", line) for line in paragraph.split("\n"))
                paragraph = "\n".join(re.sub(r"^( *\S+) {2,}$", columns, m[1] or "") + translate(m[2]) for m in lines)
                paragraphs[n] = paragraph
            else:
                paragraphs[n] = translate(paragraph)
        return "\n\n".join(paragraphs)

    def file(self, name: str, body: list[str], imports: set[str] = frozenset()) -> tuple[str, str]:
        lines = [
            f"// Generated from ringattn.h by ./dev bindings (Doxygen {self.header.doxygen}). Not edited by hand.",
            "package dev.ringattn;",
            "",
            *(f"import {i};" for i in sorted(imports)),
            *([""] if imports else []),
            *body,
            "",
        ]
        return f"{JAVA}/{name}.java", "\n".join(lines)

    # ------------------------------------------------------------ enums

    def enum(self, enum: c.Enum) -> tuple[str, str]:
        name, is_open = type_name(enum.name), enum.name in self.open_enums
        body = [*javadoc(self.names(enum.doc)), f"public enum {name} {{"]
        for k in enum.constants:
            body += javadoc(sentence(self.names(k.doc)), 2) if k.doc else []
            body += [f"  {enum.short(k)}({k.value}),"]
        if is_open:
            body += ["  /** What a newer library calls something that is not known here. */", "  UNKNOWN(-1),"]
        body[-1] = body[-1][:-1] + ";"
        otherwise = "return UNKNOWN" if is_open else f'throw new IllegalArgumentException("no {name} has value " + value)'
        body += f"""
  private final int value;

  {name}(int value) {{
    this.value = value;
  }}

  /** The value of the C constant. */
  public int value() {{
    return value;
  }}

  static {name} of(int value) {{
    for ({name} constant : values()) {{
      if (constant.value == value) {{
        return constant;
      }}
    }}
    {otherwise};
  }}
}}""".split("\n")
        return self.file(name, body)

    # ------------------------------------------------------------ what the library fills

    def record(self, struct: c.Struct) -> tuple[str, str]:
        name, raw = type_name(struct.name), c.pascal(struct.name)
        values, components, tags = [], [], []
        for f in struct.values:
            got = f"c.get{c.pascal(f.name)}()"
            java = "String" if f.type.startswith("char[") else NUMBERS[f.type]
            if f.enum:
                java, got = type_name(f.enum.name), f"{type_name(f.enum.name)}.of({got})"
            elif f.is_bool:
                java, got = "boolean", got + " != 0"
            components.append(f"    {java} {c.camel(f.name)}")
            values.append(f"        {got}")
            tags.append((f"param {c.camel(f.name)}", self.names(f.doc) or f.name.replace("_", " ")))
        body = [
            *javadoc(self.names(struct.doc), tags=tuple(tags)),
            f"public record {name}(",
            ",\n".join(components) + ") {",
            f"  static Struct<{raw}> struct() {{",
            *fit(f"    return new Struct<>(RingAttnConstants.{size_of(struct)}, {raw}::new, RingAttn::{c.camel(struct.init)});"),
            "  }",
            "",
            f"  static {name} of(Struct<{raw}> struct) {{",
            f"    {raw} c = struct.c;",
            f"    {name} record =",
            f"        new {name}(",
            ",\n".join("    " + v for v in values) + ");",
            "    struct.keepAlive();",
            "    return record;",
            "  }",
            "}",
        ]
        return self.file(name, body, {f"dev.ringattn.internal.{i}" for i in ("RingAttn", "RingAttnConstants", raw)})

    # ------------------------------------------------------------ what functions read

    def input(self, struct: c.Struct) -> tuple[str, str]:
        name, raw = type_name(struct.name), c.pascal(struct.name)
        fields = {f.name: f for f in struct.values}
        pointers = [f for f in fields.values() if f.type in ("float *", "const float *") and not f.count]

        def sized(f: c.Field) -> bool:
            return f.type in c.BLOCKS and f"{f.name}_size" in fields

        declared: list[str] = []
        defaults: list[str] = []
        methods: list[str] = []
        writes: list[str] = []
        imports = {f"dev.ringattn.internal.{i}" for i in ("RingAttn", "RingAttnConstants", raw)}

        for name_of_count, lists in struct.derived.items():
            given, count = ", ".join(c.camel(f.name) for f in lists), lists[0].count
            cast = "(int) " if next(f.type for f in struct.fields if f.name == name_of_count) == "int32_t" else ""
            writes.append(f"    c.set{c.pascal(name_of_count)}({cast}Struct.count({count.factor}, {count.more}, {given}));")
        for f in fields.values():
            field, access = c.camel(f.name), c.pascal(f.name)
            doc, value, setter = sentence(self.names(f.doc_in_words, "" if sized(f) else f.type)), field, None
            if f.type == "size_t" and (sized_by := f.name.removesuffix("_size")) != f.name:
                of = [c.camel(p.name) for p in pointers if p.name.startswith(sized_by)]
                if of:
                    writes.append(f"    c.set{access}(Tensor.shortest({', '.join(of)}));")
                continue  # or of a void *, with which it was set
            if f.type == "ra_tensor":
                java, default = "Tensor", None
                setter = f'Tensor.floats("{f.name}", {field})' if f.dtype == c.FLOAT32 else field
                setter = f'Tensor.writable("{f.name}", {setter})' if "written" in f.doc else setter
                writes.append(f"    Tensor.write({field}, c.get{access}(), struct);")
            elif f in pointers:
                java, default = "Tensor", None
                setter = f'Tensor.packedFloats("{f.name}", {field}, {"false" if f.type.startswith("const") else "true"})'
                writes.append(f"    c.set{access}(Tensor.address({field}, struct));")
            elif sized(f):
                declared.append(f"  private Tensor {field};")
                if owner := OWNED.get(f.name):
                    object_ = (f"{owner} {field}", f"{field} == null ? null : {field}.memory()")
                else:
                    imports.add("java.nio.ByteBuffer")
                    object_ = (f"ByteBuffer {field}", f'Tensor.bytes("{f.name}", {field})')
                for parameters, made in (object_, ("long address, long size", "Tensor.at(address, size, null)")):
                    what = "The same, of memory that is no buffer." if parameters.startswith("long") else doc
                    methods += ["", *javadoc(what, 2), f"  public {name} {field}({parameters}) {{", f"    this.{field} = {made};"]
                    methods += ["    made = null;", "    return this;", "  }"]
                writes.append(f"    c.set{access}(Tensor.address({field}, struct));")
                writes.append(f"    c.set{access}Size({field} == null ? 0 : {field}.size());")
                if owner:
                    methods += ["", f"  Tensor {field}() {{", f"    return {field};", "  }"]
                continue
            elif f.count:
                java, default = LISTS[f.type], None
                setter = f"{field} == null ? null : {field}.clone()"
                writes.append(f'    c.set{access}(struct.list("{f.name}", {field}, "{f.count}", {f.count.of(f"c.get{c.pascal(f.count.field)}()")}));')
            elif f.type == "const char *":
                of_type = re.match(r"(ra_\w+)::text", f.doc)
                java, default = (type_name(of_type.group(1)) if of_type else "String"), None
                text = f"{field} == null ? null : {field}.text()" if of_type else field
                writes.append(f'    c.set{access}(struct.text("{f.name}", {text}));')
            elif f.enum:
                java, default = type_name(f.enum.name), f"{type_name(f.enum.name)}.of(c.get{access}())"
                setter = f"Objects.requireNonNull({field})"
                imports.add("java.util.Objects")
                writes.append(f"    c.set{access}({field}.value());")
            elif f.is_bool:
                java, default = "boolean", f"c.get{access}() != 0"
                writes.append(f"    c.set{access}({field} ? 1 : 0);")
            else:
                java, default = NUMBERS[f.type], f"c.get{access}()"
                writes.append(f"    c.set{access}({field});")
            declared.append(f"  private {java} {field};")
            if default:
                defaults.append(f"    {field} = {default};")
            got = f"{field} == null ? null : {field}.clone()" if f.count else field
            methods += [
                "",
                *javadoc(doc, 2),
                f"  public {name} {field}({java.replace('[]', '...')} {field}) {{",
                *fit(f"    this.{field} = {setter or value};"),
                "    made = null;",
                "    return this;",
                "  }",
                "",
                f"  /** What {{@link #{field}({java.replace('[]', '...')})}} set, or the default. */",
                f"  public {java} {field}() {{",
                f"    return {got};",
                "  }",
            ]
        # The dtypes that the tensors of a call must have, where its description or the cache's says them.
        checks: list[str] = []
        for given, description in DESCRIPTIONS.items():
            typed = [f for f in fields.values() if f.dtype and f.dtype.startswith(given + ".")]
            if not typed:
                continue
            checks += ["", f"  /** Refuses tensors of other types than `{given}` has. */", f"  void requireTypes({description} {given}) {{"]
            for f in typed:
                of = f.dtype.removeprefix(given + ".")
                own = f"{given}.dtype()" if of == "dtype" else f"Tensor.orSame({given}.{c.camel(of)}(), {given}.dtype())"
                checks += fit(f'    Tensor.requireType("{f.name}", {c.camel(f.name)}, {own}, "{f.dtype}");')
            checks.append("  }")
        copies = [line.split()[-1].removesuffix(";") for line in declared]
        others: list[str] = []
        for earlier in dict.fromkeys(f.same_in for f in struct.fields if f.same_in):
            same = [c.camel(f.name) for f in struct.fields if f.same_in == earlier and c.camel(f.name) in copies]
            says = f"With what `other` has of it: {', '.join(same[:-1])} and {same[-1]}."
            others += ["", *javadoc(says, 2), f"  public {name}({type_name(earlier)} other) {{", "    this();"]
            others += [*(f"    {field} = other.{field}();" for field in same), "  }"]
        body = [
            *javadoc(self.names(struct.doc) + "\n\nSeveral threads may give it to calls at the same time; only one may change it, and meanwhile no other use it."),
            f"public final class {name} {{",
            f"  private static final Struct<{raw}> DEFAULTS = struct();",
            "",
            *declared,
            "",
            "  /** As C reads it: made of the fields above when first asked for, and null after a change. */",
            f"  private volatile Struct<{raw}> made;",
            "",
            "  /** With the library's defaults. */",
            f"  public {name}() {{",
            f"    {raw} c = DEFAULTS.c;",
            *defaults,
            "  }",
            "",
            "  /** With what the other one has now. */",
            f"  public {name}({name} other) {{",
            *(f"    {field} = other.{field};" for field in copies),
            "    made = other.made;",
            "  }",
            *others,
            *methods,
            *checks,
            "",
            f"  private static Struct<{raw}> struct() {{",
            *fit(f"    return new Struct<>(RingAttnConstants.{size_of(struct)}, {raw}::new, RingAttn::{c.camel(struct.init)});"),
            "  }",
            "",
            f"  Struct<{raw}> made() {{",
            f"    Struct<{raw}> known = made;",
            "    return (known != null ? known : (made = make())).usable();",
            "  }",
            "",
            f"  private Struct<{raw}> make() {{",
            f"    Struct<{raw}> struct = struct();",
            f"    {raw} c = struct.c;",
            *(line for statement in writes for line in fit(statement)),
            "    return struct;",
            "  }",
            "}",
        ]
        return self.file(name, body, imports)


NUMBERS = {"int32_t": "int", "int64_t": "long", "size_t": "long", "float": "float", "double": "double", "void *": "long", "ra_stream": "long"}


LISTS = {"const int64_t *": "long[]", "const float *": "float[]"}


def size_of(struct: c.Struct) -> str:
    return struct.name.removeprefix("ra_").upper() + "_SIZE"


# ---------------------------------------------------------------- SWIG


def swig(header: c.Header) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"%constant size_t {size_of(s)} = sizeof({s.name});\n" for s in header.structs]
        pathlib.Path(folder, "sizes.i").write_text("".join(sizes))
        code = pathlib.Path(folder, "ringattn_jni.c")
        command = ["swig", "-Wall", "-Werror", "-java", "-package", "dev.ringattn.internal", "-outdir", folder, "-o", code]
        subprocess.run([*command, f"-I{folder}", "-Iinclude", "bindings/swig/java.i"], check=True, cwd=c.ROOT)
        files = {f"{FOLDERS[0]}/c/{code.name}": code.read_text()}
        for path in sorted(pathlib.Path(folder).glob("*.java")):
            if path.name.startswith("SWIGTYPE"):
                raise c.HeaderError(f"{path.stem}: java.i has no typemap for it")
            files[f"{JAVA}/internal/{path.name}"] = path.read_text()
    if any("BigInteger" in text for text in files.values()):
        raise c.HeaderError("BigInteger: java.i has no typemap for an unsigned type")
    return files


def with_version(path: str, header: c.Header) -> str:
    version = ".".join(map(str, header.version))
    text = (c.ROOT / path).read_text()
    return re.sub(r"(<artifactId>ringattn</artifactId>\s*<version>)[^<]*", rf"\g<1>{version}", text)


def generate(header: c.Header) -> dict[str, str]:
    writer = Writer(header)
    taken_const = {p.type for f in header.functions for p in f.parameters}
    files = swig(header) | {path: with_version(path, header) for path in VERSIONED}
    for enum in header.enums:
        files |= [writer.enum(enum)]
    for struct in header.structs:
        if struct.fields[0].name == "struct_size" and struct.name not in c.PLAIN:
            is_input = f"const {struct.name} *" in taken_const
            files |= [writer.input(struct) if is_input else writer.record(struct)]
    return files
