import { stat } from "node:fs/promises";
import { z } from "zod";
import { CheckpointError, reason, show } from "./errors.ts";
import { isObject, jsonType, parseJsonObject } from "./json.ts";

/**
 * Reads and checks safetensors headers: 8 bytes of header length (little endian), that many bytes
 * of JSON, then the tensors' data without holes. The data itself is never read here: the native
 * library maps the file. Format: https://huggingface.co/docs/safetensors.
 */

/** Bytes of one element. */
const elementBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

export type SafetensorsDType = keyof typeof elementBytes;

/** Where one tensor's data lies in its file. */
export interface TensorInfo {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface SafetensorsFile {
  readonly path: string;
  readonly fileBytes: number;
  /** 8 + the JSON's length. Data starts here. */
  readonly headerBytes: number;
  /** The first `headerBytes` bytes of the file, for the library to compare with what it maps. */
  readonly header: Uint8Array<ArrayBuffer>;
  readonly dataStart: number;
  /** Free text by key, from the header's `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

const lengthBytes = 8;
/** The format's own limit; a longer header is damage or an attack. */
const maxHeaderBytes = 100_000_000;
const damaged = "the file is damaged or is not safetensors: download or convert it again";
const cutShort = "the file is cut short: download it again";

const metadataSchema = z.record(z.string(), z.string());

/** Reads the header of the file at `path`. Throws CheckpointError. */
export async function readSafetensors(path: string): Promise<SafetensorsFile> {
  const fileBytes = await sizeOf(path);
  const read = async (bytes: number) => {
    try {
      return await Bun.file(path).slice(0, bytes).bytes();
    } catch (error) {
      throw unreadable(path, reason(error));
    }
  };
  const headerBytes = headerBytesOf(path, await read(lengthBytes), fileBytes);
  return parseSafetensors(path, await read(headerBytes), fileBytes);
}

/**
 * Checks a whole header. `header`: the file's first bytes, at least the 8 + N of the header;
 * `fileBytes`: the length of the file. Throws CheckpointError, whatever the bytes are.
 */
export function parseSafetensors(
  path: string,
  header: Uint8Array<ArrayBuffer>,
  fileBytes: number,
): SafetensorsFile {
  const headerBytes = headerBytesOf(path, header, fileBytes);
  const json = header.subarray(lengthBytes, headerBytes);
  if (json.length !== headerBytes - lengthBytes) {
    throw new CheckpointError({
      file: path,
      expected: `${headerBytes} bytes of header`,
      came: `${header.length}`,
      remedy: cutShort,
    });
  }
  if (json[0] !== 0x7b) {
    throw new CheckpointError({
      file: path,
      expected: 'the header to start with "{"',
      came: `byte ${json[0]}`,
      remedy: damaged,
    });
  }
  const { __metadata__, ...entries } = parseJsonObject(path, "the header", json, damaged);
  const tensors = new Map<string, TensorInfo>();
  for (const [name, entry] of Object.entries(entries)) {
    tensors.set(name, tensorInfo(path, name, entry, headerBytes, fileBytes));
  }
  checkLayout(path, tensors, headerBytes, fileBytes);
  return {
    path,
    fileBytes,
    headerBytes,
    header: header.slice(0, headerBytes),
    dataStart: headerBytes,
    metadata: metadataOf(path, __metadata__),
    tensors,
  };
}

async function sizeOf(path: string): Promise<number> {
  let info;
  try {
    info = await stat(path);
  } catch (error) {
    throw unreadable(path, reason(error));
  }
  if (!info.isFile()) throw unreadable(path, "something that is not a file");
  return info.size;
}

function unreadable(path: string, came: string): CheckpointError {
  return new CheckpointError({
    file: path,
    expected: "a readable safetensors file",
    came,
    remedy: "check the path and its permissions",
  });
}

/** 8 + the header's length, from the first 8 bytes. */
function headerBytesOf(path: string, prefix: Uint8Array, fileBytes: number): number {
  const fail = (expected: string, came: string, remedy: string): never => {
    throw new CheckpointError({ file: path, expected, came, remedy });
  };
  if (fileBytes < lengthBytes || prefix.length < lengthBytes) {
    const came = `${Math.min(fileBytes, prefix.length)} bytes`;
    return fail("a safetensors file, which starts with 8 bytes of header length", came, cutShort);
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, lengthBytes);
  const jsonBytes = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
  if (jsonBytes < 2 || jsonBytes > maxHeaderBytes) {
    return fail(`a header of 2 to ${maxHeaderBytes} bytes`, `a length of ${jsonBytes}`, damaged);
  }
  if (lengthBytes + jsonBytes > fileBytes) {
    const came = `a header length of ${jsonBytes} in a file of ${fileBytes} bytes`;
    return fail("a header that ends inside the file", came, cutShort);
  }
  return lengthBytes + jsonBytes;
}

function metadataOf(path: string, value: unknown): Record<string, string> {
  if (value === undefined) return {};
  const parsed = metadataSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new CheckpointError({
    file: path,
    expected: "__metadata__ to be an object of strings",
    came: show(value),
    remedy: damaged,
  });
}

/** Checks one header entry by itself. Written out, not as a schema: there may be millions. */
function tensorInfo(
  file: string,
  tensor: string,
  entry: unknown,
  dataStart: number,
  fileBytes: number,
): TensorInfo {
  const fail = (expected: string, came: string, remedy = damaged): never => {
    throw new CheckpointError({ file, tensor, expected, came, remedy });
  };
  if (!isObject(entry)) {
    return fail("an object with dtype, shape and data_offsets", jsonType(entry));
  }
  const { dtype, shape, data_offsets: offsets } = entry;
  if (!isDType(dtype)) {
    const known = Object.keys(elementBytes).join(", ");
    return fail(`a dtype of ${known}`, show(dtype), "convert the tensor to BF16");
  }
  if (!isSizes(shape)) return fail("a shape of whole numbers, 0 or more", show(shape));
  if (!isSizes(offsets) || offsets.length !== 2) {
    return fail("data_offsets [begin, end] of whole numbers, 0 or more", show(offsets));
  }
  const [begin = 0, end = 0] = offsets;
  const bytes = shape.reduce((product, size) => product * size, elementBytes[dtype]);
  if (!Number.isSafeInteger(bytes)) {
    return fail("a shape of fewer than 2^53 bytes", show(shape));
  }
  if (end - begin !== bytes) {
    const came = `data_offsets ${show(offsets)}, which is ${end - begin} bytes`;
    return fail(`${bytes} bytes for ${dtype} ${show(shape)}`, came);
  }
  const dataBytes = fileBytes - dataStart;
  if (end > dataBytes) {
    const came = `data_offsets ${show(offsets)}`;
    return fail(`data inside the file's ${dataBytes} data bytes`, came, cutShort);
  }
  return { dtype, shape, offset: dataStart + begin, bytes };
}

function isDType(value: unknown): value is SafetensorsDType {
  return typeof value === "string" && Object.hasOwn(elementBytes, value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** The data has to be exactly the tensors, one after the other: no overlap, no hole, no rest. */
function checkLayout(
  file: string,
  tensors: ReadonlyMap<string, TensorInfo>,
  dataStart: number,
  fileBytes: number,
): void {
  const inOrder = [...tensors].sort(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataStart;
  let previous = "";
  for (const [tensor, { offset, bytes }] of inOrder) {
    if (offset !== end) {
      const fault = offset < end ? `an overlap with ${show(previous)}` : "a hole before it";
      throw new CheckpointError({
        file,
        tensor,
        expected: `data to start at byte ${end - dataStart}, where the tensor before it ends`,
        came: `byte ${offset - dataStart}, ${fault}`,
        remedy: damaged,
      });
    }
    end = offset + bytes;
    previous = tensor;
  }
  if (end !== fileBytes) {
    throw new CheckpointError({
      file,
      expected: `a file of ${end} bytes, as its tensors need`,
      came: `${fileBytes} bytes`,
      remedy: damaged,
    });
  }
}
