//! Weight files: mapped here, since a JavaScript buffer ends at 4 GiB, and checked against the
//! header that TypeScript read.
const std = @import("std");
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const os = @import("../core/os.zig");
const objects = @import("objects.zig");

const Error = errors.Error;
const Status = types.Status;

/// A safetensors file begins with the length of its JSON header as u64, little-endian.
const length_bytes = 8;

pub fn md_file_open(
    path: manifest.CString,
    header_bytes: u32,
    hash_low: u32,
    hash_high: u32,
    out: ?*u32,
) callconv(.c) Status {
    return errors.finish(
        "md_file_open",
        open(path, header_bytes, @as(u64, hash_high) << 32 | hash_low, out),
    );
}

fn open(maybe_path: manifest.CString, header_bytes: u32, hash: u64, maybe_out: ?*u32) Error!void {
    const path = try objects.required("path", maybe_path);
    const out = try objects.required("out", maybe_out);
    const bytes = os.mapFile(path) catch |err| return switch (err) {
        error.CannotOpen => errors.fail(
            error.IoError,
            "expected a readable file, cannot open {s}",
            .{path},
        ),
        error.CannotMap => errors.fail(
            error.IoError,
            "expected a file that can be mapped, got {s}",
            .{path},
        ),
    };
    errdefer os.unmapMemory(bytes);
    const data_start = length_bytes + @as(u64, header_bytes);
    if (bytes.len < data_start) {
        return errors.fail(
            error.CorruptFile,
            "expected a header of {d} bytes, but {s} has {d} bytes in all",
            .{ header_bytes, path, bytes.len },
        );
    }
    const stated = std.mem.readInt(u64, bytes[0..length_bytes], .little);
    if (stated != header_bytes) {
        return errors.fail(
            error.CorruptFile,
            "expected a header of {d} bytes, but {s} states {d}: it changed after its header was read",
            .{ header_bytes, path, stated },
        );
    }
    if (std.hash.Fnv1a_64.hash(bytes[length_bytes..][0..header_bytes]) != hash) {
        return errors.fail(
            error.CorruptFile,
            "expected the header that was read before, but that of {s} has changed",
            .{path},
        );
    }
    out.* = try objects.publish(
        objects.File,
        .file,
        0,
        .{ .bytes = bytes, .data_start = data_start },
    );
}

pub fn md_file_close(file: u32) callconv(.c) Status {
    return errors.finish("md_file_close", close(file));
}

fn close(handle: u32) Error!void {
    const file = try handles.get(objects.File, .file, handle);
    if (file.readers.load(.acquire) != 0) {
        return errors.fail(
            error.InvalidArgument,
            "expected a file that nothing enqueued still reads: call md_stream_sync first",
            .{},
        );
    }
    os.unmapMemory(file.bytes);
    objects.retract(file, handle);
}

/// Address of `bytes` bytes at `offset` of the file's data.
pub fn dataAddress(file: *const objects.File, offset: u64, bytes: u64) Error!u64 {
    const available = file.bytes.len - file.data_start;
    if (offset > available or bytes > available - offset) {
        return errors.fail(
            error.CorruptFile,
            "expected {d} bytes at offset {d} of the file's data, which has {d}",
            .{ bytes, offset, available },
        );
    }
    return @intFromPtr(file.bytes.ptr) + file.data_start + offset;
}
