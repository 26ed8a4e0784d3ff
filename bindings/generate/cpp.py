"""C++ for the conformance suite: fields of the records by name, so that a case sets whatever the header has."""

import header as c

FOLDERS = ("bindings/conformance/generated",)


def generate(header: c.Header) -> dict[str, str]:
    lines = [
        f"// Generated from ringattn.h by ./dev bindings (Doxygen {header.doxygen}). Not edited by hand.",
        "#pragma once",
        "",
        "#include <json.h>",
        "",
        "namespace ringattn::conformance {",
        "",
    ]
    for enum in header.enums:
        lines.append(f"constexpr Constant {enum.name.removeprefix('ra_')}_constants[] = {{")
        lines += [f'    {{"{enum.short(k)}", {k.name}}},' for k in enum.constants]
        lines.append("};")
    for record in (s for s in header.records if s.is_input):
        lines += ["", f"inline void set({record.name} &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {{"]
        lines.append("  const auto is = [&](const char *name) { return field == name; };")
        for f in record.values:
            if f.type == "void *":
                continue
            if f.enum:
                value = f"constant({f.enum.name.removeprefix('ra_')}_constants, value)"
            elif f.type == "const char *":
                value = "kept.text(value)"
            elif f.count:
                value = "kept.reals(value)" if f.type == "const float *" else "kept.list(value)"
            else:
                value = f"number<{f.type}>(value)"
            lines.append(f'  if (is("{f.name}")) return void(record.{f.name} = {value});')
            if f.count and f.count.is_derived and record.derived[f.count.field][0] is f:  # the first list says the count
                entries = "number_of(value)" + (f" - {f.count.more}" if f.count.more else "") + (f" / {f.count.factor}" if f.count.factor > 1 else "")
                count_type = next(other.type for other in record.fields if other.name == f.count.field)
                if count_type != "int64_t":
                    entries = f"static_cast<{count_type}>({entries})"
                set_count = f"record.{f.count.field} = {entries}, record.{f.name} = {value}"
                lines[-1] = f'  if (is("{f.name}")) return void(({set_count}));'
        lines += [f'  unknown("{record.name}", field);', "}"]
    lines += ["", "}  // namespace ringattn::conformance", ""]
    desc = header.struct("ra_attention_desc")
    names = [
        lines[0],
        "#pragma once",
        "",
        "// For tests that must know every field.",
        f"constexpr const char *{desc.name.removeprefix('ra_')}_fields[] = {{",
        *(f'    "{f.name}",' for f in desc.fields if f.name != "struct_size" and not f.is_reserved),
        "};",
        "",
    ]
    folder = "bindings/conformance/generated"
    return {f"{folder}/fields.h": "\n".join(lines), f"{folder}/names.h": "\n".join(names)}
