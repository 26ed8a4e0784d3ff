"""The C API for Python, read from its header when this module is imported.

    api = ringattn_ctypes.load("libringattn.so", "ringattn.h")
    desc = api.make("ra_attention_desc", seqlen_q=1024, head_dim=64)    initialised by ra_init_attention_desc
    api.call("ra_forward", context, desc, args)                        raises api.Error unless it succeeds
    api.RA_DTYPE_BFLOAT16, api.ra_tensor, api.functions.ra_get_version   constants, structs, plain functions

Nothing of the header is repeated here, so nothing can differ from it.
"""

import ctypes
import re

SCALARS = {
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "char": ctypes.c_char,
    "void": None,
}


class Api:
    def __init__(self, library_path, header_path):
        with open(header_path, encoding="utf-8") as file:
            text = re.sub(r"/\*.*?\*/", " ", file.read(), flags=re.DOTALL)
        text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
        self.functions = ctypes.CDLL(library_path)
        self._read_enums(text)
        self._read_structs(text)
        self._read_functions(text)

    def _read_enums(self, text):
        self._enums = set()
        for body, name in re.findall(r"typedef\s+enum\s+\w+\s*\{(.*?)\}\s*(\w+)\s*;", text, re.DOTALL):
            self._enums.add(name)
            for constant, value in re.findall(r"(\w+)\s*=\s*(-?\d+)", body):
                setattr(self, constant, int(value))

    def _read_structs(self, text):
        for name, body in re.findall(r"typedef\s+struct\s+(\w+)\s*\{(.*?)\}\s*\1\s*;", text, re.DOTALL):
            fields = []
            for declaration in filter(None, (part.strip() for part in body.split(";"))):
                kind, field, count = re.fullmatch(r"(.*?)(\w+)\s*(?:\[(\d+)\])?", declaration, re.DOTALL).groups()
                kind = self._type(kind)
                fields.append((field, kind * int(count) if count else kind))
            setattr(self, name, type(name, (ctypes.Structure,), {"_fields_": fields}))

    def _read_functions(self, text):
        for result, name, arguments in re.findall(r"RA_API\s+([\w\s*]+?)(\w+)\s*\(([^)]*)\)\s*;", text):
            function = getattr(self.functions, name)
            function.restype = self._type(result)
            parts = [part.strip() for part in arguments.split(",")]
            function.argtypes = [self._type(re.match(r"(.*?)\w+$", part, re.DOTALL)[1]) for part in parts if part != "void"]

    def _type(self, text):
        """A C type as a ctypes one. Pointers to structs stay typed, all others but text are plain addresses."""
        words = text.replace("*", " * ").split()
        base = [word for word in words if word not in ("const", "struct", "*")][0]
        pointer = "*" in words
        struct = getattr(self, base, None)
        if pointer:
            return ctypes.POINTER(struct) if struct else ctypes.c_char_p if base == "char" else ctypes.c_void_p
        if struct:
            return struct
        if base in self._enums:
            return ctypes.c_int32
        return SCALARS.get(base, ctypes.c_void_p)  # the rest are handles: ra_stream, ra_log_callback

    class Error(Exception):
        def __init__(self, status, error):
            super().__init__(f"{status}: {error.message.decode()}")
            self.status, self.rank = error.status, error.rank

    def make(self, name, **fields):
        struct = getattr(self, name)()
        initialise = getattr(self.functions, name.replace("ra_", "ra_init_", 1))
        initialise(ctypes.byref(struct), ctypes.sizeof(struct))
        for field, value in fields.items():
            if field not in {known for known, _ in struct._fields_}:
                raise AttributeError(f"{name} has no field {field}")
            setattr(struct, field, value)
        return struct

    def call(self, name, *arguments):
        """Calls a function whose last parameter is ra_error *; structs are passed by their address."""
        error = self.ra_error()
        passed = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        result = getattr(self.functions, name)(*passed, ctypes.byref(error))
        if error.status != self.RA_STATUS_SUCCESS:
            raise Api.Error(self.functions.ra_get_status_name(error.status).decode(), error)
        return result


def load(library_path, header_path):
    return Api(library_path, header_path)
