// bf16 is the upper half of an f32. Conversion rounds to nearest even and keeps NaN, as the kernels
// do.

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

function bf16Bits(x: number): number {
  float[0] = x;
  const word = bits[0] as number;
  if (x !== x) return ((word | 0x0040_0000) >>> 16) & 0xffff;
  return (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
}

/** The bf16 bits nearest to each number. */
export function toBf16(x: Float32Array): Uint16Array {
  const out = new Uint16Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = bf16Bits(x[i] as number);
  return out;
}

/** The numbers that bf16 bits stand for. */
export function fromBf16(x: Uint16Array): Float32Array {
  const out = new Float32Array(x.length);
  const words = new Uint32Array(out.buffer);
  for (let i = 0; i < x.length; i++) words[i] = (x[i] as number) << 16;
  return out;
}

/** Each number replaced by the bf16 value nearest to it. */
export function roundToBf16(x: Float32Array): Float32Array {
  return fromBf16(toBf16(x));
}
