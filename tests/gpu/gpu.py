"""Where the tensors of ranks are: in a GPU's memory, or in the host's.

    place = Gpu(0)                       the NVIDIA driver's own functions; nothing but the driver has to be installed
    place = Host()                       for the CPU backend
    data = place.allocate(bytes)         an address, as the C API takes it
    place.write(data, b"..."), place.read(data, bytes), place.free(data)
    with place.stream() as stream:       what ra_forward_args::stream takes
        place.wait(stream)
    place.used()                         bytes of the device that are taken, by whomever
"""

import contextlib
import ctypes


class Host:
    name = None

    def __init__(self):
        self.blocks = {}

    def allocate(self, size):
        block = ctypes.create_string_buffer(size + 64)
        address = (ctypes.addressof(block) + 63) // 64 * 64
        self.blocks[address] = block
        return address

    def free(self, data):
        del self.blocks[data]

    def write(self, data, values):
        ctypes.memmove(data, values, len(values))

    def read(self, data, size):
        return ctypes.string_at(data, size)

    @contextlib.contextmanager
    def stream(self):
        yield None

    def wait(self, stream):
        pass

    def enter(self):
        pass


class Gpu:
    """A device, through the driver API, in the primary context that the CUDA runtime uses too."""

    def __init__(self, number, driver="libcuda.so.1"):
        self.driver = ctypes.CDLL(driver)
        self.call("cuInit", 0)
        device, context, version = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), number)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.driver_version = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context
        self.enter()

    def call(self, name, *arguments):
        result = getattr(self.driver, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(result, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()}")

    def enter(self):
        """Of every thread that uses the device, before it does."""
        self.call("cuCtxSetCurrent", self.context)

    def allocate(self, size):
        data = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(data), ctypes.c_size_t(max(size, 1)))
        return data.value

    def free(self, data):
        self.call("cuMemFree_v2", ctypes.c_uint64(data))

    def write(self, data, values):
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(data), ctypes.c_char_p(values), ctypes.c_size_t(len(values)))

    def read(self, data, size):
        values = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", values, ctypes.c_uint64(data), ctypes.c_size_t(size))
        return values.raw

    @contextlib.contextmanager
    def stream(self):
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        try:
            yield stream.value
        finally:
            self.call("cuStreamDestroy_v2", stream)

    def wait(self, stream):
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def used(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value
