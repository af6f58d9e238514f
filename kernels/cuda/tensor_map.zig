//! Tensor maps: what the copy engine must know of an array to fetch boxes of it (Hopper and newer).
const std = @import("std");
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;

/// The driver's CUtensorMap: a kernel parameter, or the first field of one.
pub const TensorMap = extern struct { bytes: [128]u8 align(64) };

/// How 16-byte chunks of a row of the box are exchanged in shared memory.
pub const Swizzle = enum(c_uint) { none = 0, b64 = 2, b128 = 3 };

const interleave_none = 0;
const promote_to_256_bytes = 3;
const fill_with_zeros = 0;

/// Of a (rows, columns) array whose rows stand `row_stride_bytes` apart, boxes of (box_rows,
/// box_columns). What a box reaches outside of the array reads as 0.
pub fn encode2d(
    ctx: *Context,
    dtype: types.DType,
    address: u64,
    rows: u64,
    columns: u64,
    row_stride_bytes: u64,
    box_rows: u32,
    box_columns: u32,
    swizzle: Swizzle,
) Error!TensorMap {
    var map: TensorMap = undefined;
    try ctx.call(.cuTensorMapEncodeTiled, .{
        &map,                             dataType(dtype),
        2,                                address,
        &[_]u64{ columns, rows },         &[_]u64{row_stride_bytes},
        &[_]u32{ box_columns, box_rows }, &[_]u32{ 1, 1 },
        interleave_none,                  @intFromEnum(swizzle),
        promote_to_256_bytes,             fill_with_zeros,
    });
    return map;
}

/// CUtensorMapDataType.
fn dataType(dtype: types.DType) c_uint {
    return switch (dtype) {
        .u8 => 0,
        .u32 => 2,
        .i32 => 3,
        .f32 => 7,
        .f64 => 8,
        .bf16 => 9,
    };
}

comptime {
    std.debug.assert(@sizeOf(TensorMap) == 128 and @alignOf(TensorMap) == 64);
}
