package ringattn

import (
	"math"
	"unsafe"
)

// Element is what a tensor in host memory may consist of.
type Element interface {
	float32 | BFloat16 | Float16
}

// BFloat16 has the upper half of a float32's bits.
type BFloat16 uint16

// Float16 is IEEE 754's binary16.
type Float16 uint16

// ToBFloat16 rounds to nearest, ties to even.
func ToBFloat16(x float32) BFloat16 {
	bits := math.Float32bits(x)
	if x != x {
		return BFloat16(bits>>16 | 0x40) // stays a NaN
	}
	return BFloat16((bits + 0x7FFF + bits>>16&1) >> 16)
}

// Float32 is exact.
func (x BFloat16) Float32() float32 { return math.Float32frombits(uint32(x) << 16) }

// ToFloat16 rounds to nearest, ties to even; what is too large becomes an infinity.
func ToFloat16(x float32) Float16 {
	bits := math.Float32bits(x)
	sign, bits := Float16(bits>>16&0x8000), bits&0x7FFFFFFF
	switch {
	case bits > 0x7F800000:
		return sign | 0x7E00 // a NaN
	case bits >= 0x47800000: // 2^16
		return sign | 0x7C00
	case bits < 0x38800000: // 2^-14: the sum's last bit is 2^-24, the smallest Float16
		return sign | Float16(math.Float32bits(math.Float32frombits(bits)+0.5)-math.Float32bits(0.5))
	}
	return sign | Float16((bits-(127-15)<<23+0xFFF+bits>>13&1)>>13)
}

// Float32 is exact.
func (x Float16) Float32() float32 {
	sign, exponent, fraction := uint32(x&0x8000)<<16, uint32(x>>10&0x1F), uint32(x&0x3FF)
	switch exponent {
	case 0:
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)/(1<<24)))
	case 0x1F:
		return math.Float32frombits(sign | 0x7F800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}

// Strides are distances in elements, between batch entries, tokens and heads; a head's elements are dense. All [StridePacked], 0: as
// in a packed tensor [batch, seq, head, dim]. [StrideRepeat]: one slice again and again; of inputs only.
type Strides struct {
	Batch, Seq, Head int64
}

// Tensor is memory with an element type and strides. The zero value is no tensor.
type Tensor struct {
	memory  Buffer
	dtype   DType
	strides Strides
}

// Packed is a tensor [batch, seq, head, dim] that fills data, or its beginning.
func Packed[T Element](data []T) Tensor { return Strided(data, Strides{}) }

// Strided is a tensor whose first element is data[0]. One that reaches further than data is refused.
//
// No element of an output may be one of another tensor, but tensors may be interleaved in one slice, as dq, dk and dv are in [batch,
// seq, 3, head, dim].
func Strided[T Element](data []T, strides Strides) Tensor {
	t := Tensor{dtype: dtypeOf[T](), strides: strides}
	if len(data) > 0 {
		t.memory = Buffer{host: unsafe.Pointer(&data[0]), size: uintptr(len(data)) * unsafe.Sizeof(data[0])}
	}
	return t
}

// Device is a tensor in memory of the context's CUDA device, of which size bytes may be used from address on (0: not checked). Go
// does not keep it: it has to be there until what the call enqueued is over. Calls on the CPU backend, and those without a context,
// refuse it; those on the CUDA backend take nothing else.
func Device(dtype DType, address, size uintptr, strides Strides) Tensor {
	return Tensor{DeviceBuffer(address, size), dtype, strides}
}

// Buffer is memory without a type, for workspaces and what layers keep. The zero value is none: for a workspace the context then uses
// memory of its own.
type Buffer struct {
	host   unsafe.Pointer
	device uintptr
	size   uintptr
}

// NewBuffer makes one in host memory, aligned as calls want it.
func NewBuffer(size uint64) Buffer {
	const alignment = 64
	data := make([]byte, size+alignment-1)
	address := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	return HostBuffer(data[-address%alignment:][:size])
}

// HostBuffer is one that fills data.
func HostBuffer(data []byte) Buffer {
	if len(data) == 0 {
		return Buffer{}
	}
	return Buffer{host: unsafe.Pointer(&data[0]), size: uintptr(len(data))}
}

// DeviceBuffer is one in memory of the context's CUDA device, as [Device].
func DeviceBuffer(address, size uintptr) Buffer { return Buffer{device: address, size: size} }

func dtypeOf[T Element]() DType {
	switch any(*new(T)).(type) {
	case BFloat16:
		return DTypeBFloat16
	case Float16:
		return DTypeFloat16
	}
	return DTypeFloat32
}

// or is what an output's dtype stands for, given that of the inputs.
func (x DType) or(same DType) DType {
	if x == DTypeSame {
		return same
	}
	return x
}
