//! Checks of descriptor fields against an expected shape and dtype. What fails is told as a reader
//! of the code would say it: "expected x of (rows, 256) bf16, got (8, 128) bf16".
const std = @import("std");
const types = @import("../abi/types.zig");
const errors = @import("errors.zig");

const Error = errors.Error;
const DType = types.DType;

/// One dimension: a name where any size from 1 on will do, else the size.
pub const Dim = union(enum) { any: []const u8, size: u64 };

pub inline fn any(comptime name: []const u8) Dim {
    return .{ .any = name };
}

pub inline fn is(size: u64) Dim {
    return .{ .size = size };
}

/// Whether an optional tensor or cache was given.
pub inline fn given(ref: anytype) bool {
    return switch (@TypeOf(ref)) {
        types.Tensor => ref.data != 0 or ref.rank != 0,
        types.KvCache => ref.data != 0 or ref.layers != 0,
        else => @compileError("neither a tensor nor a cache"),
    };
}

pub fn dtypeBytes(dtype: DType) u64 {
    return switch (dtype) {
        .u8 => 1,
        .bf16 => 2,
        .f32, .i32, .u32 => 4,
        .f64 => 8,
    };
}

pub fn tensor(
    comptime name: []const u8,
    t: *const types.Tensor,
    comptime dtype: DType,
    dims: []const Dim,
) Error!void {
    if (rawDtype(t) != @intFromEnum(dtype) or !fits(t, dims)) return mismatch(name, t, dtype, dims);
    return data(name, t.data, comptime dtypeBytes(dtype));
}

pub fn data(comptime name: []const u8, address: u64, alignment: u64) Error!void {
    if (address != 0 and address % alignment == 0) return;
    return errors.fail(
        error.InvalidArgument,
        "expected {s} at an address that {d} divides, got 0x{x}",
        .{ name, alignment, address },
    );
}

fn fits(t: *const types.Tensor, dims: []const Dim) bool {
    if (t.rank != dims.len) return false;
    for (t.shape[0..dims.len], dims) |extent, dim| switch (dim) {
        .any => if (extent == 0) return false,
        .size => |size| if (extent != size) return false,
    };
    for (t.shape[dims.len..]) |extent| if (extent != 0) return false;
    return true;
}

/// A caller may have put anything where an enum is expected.
pub fn rawDtype(t: *const types.Tensor) u32 {
    return @as(*const u32, @ptrCast(&t.dtype)).*;
}

fn mismatch(
    comptime name: []const u8,
    t: *const types.Tensor,
    dtype: DType,
    dims: []const Dim,
) Error {
    @branchHint(.cold);
    if (!given(t.*)) return errors.fail(
        error.InvalidArgument,
        "expected {s} of {f} {t}, got none",
        .{ name, Dims{ .dims = dims }, dtype },
    );
    return errors.fail(
        error.InvalidArgument,
        "expected {s} of {f} {t}, got {f}",
        .{ name, Dims{ .dims = dims }, dtype, Shape{ .tensor = t } },
    );
}

const Dims = struct {
    dims: []const Dim,

    pub fn format(self: Dims, w: *std.Io.Writer) std.Io.Writer.Error!void {
        for (self.dims, 0..) |dim, i| {
            try w.writeAll(if (i == 0) "(" else ", ");
            switch (dim) {
                .any => |text| try w.writeAll(text),
                .size => |size| try w.print("{d}", .{size}),
            }
        }
        try w.writeAll(")");
    }
};

/// "(8, 128) bf16", for messages and traces.
pub const Shape = struct {
    tensor: *const types.Tensor,

    pub fn format(self: Shape, w: *std.Io.Writer) std.Io.Writer.Error!void {
        const t = self.tensor;
        if (t.rank > t.shape.len) return w.print("rank {d}", .{t.rank});
        try w.writeAll("(");
        for (t.shape[0..t.rank], 0..) |extent, i| try w.print(
            "{s}{d}",
            .{ if (i == 0) "" else ", ", extent },
        );
        const dtype = std.enums.fromInt(DType, rawDtype(t));
        try w.print(") {s}", .{if (dtype) |known| @tagName(known) else "of an unknown dtype"});
    }
};

/// Descriptors end in a reserved word so that a later field of them starts from 0.
pub fn reserved(value: u32) Error!void {
    if (value != 0) return errors.fail(
        error.InvalidArgument,
        "expected reserved to be 0, got {d}",
        .{value},
    );
}

pub fn between(comptime name: []const u8, value: u64, low: u64, high: u64) Error!void {
    if (value >= low and value <= high) return;
    return errors.fail(
        error.InvalidArgument,
        "expected {s} of {d} to {d}, got {d}",
        .{ name, low, high, value },
    );
}

pub fn finite(comptime name: []const u8, value: f32) Error!void {
    if (!std.math.isFinite(value)) return errors.fail(
        error.InvalidArgument,
        "expected a finite {s}, got {d}",
        .{ name, value },
    );
}

pub fn absent(comptime name: []const u8, ref: anytype, comptime reason: []const u8) Error!void {
    if (given(ref)) return errors.fail(
        error.InvalidArgument,
        "expected no {s} {s}",
        .{ name, reason },
    );
}

/// A paged cache and the layer of it that is meant.
pub fn kvCache(comptime name: []const u8, cache: *const types.KvCache, layer: u32) Error!void {
    try data(name, cache.data, 64);
    try between(name ++ ".layers", cache.layers, 1, 1 << 16);
    try between(name ++ ".pages", cache.pages, 1, std.math.maxInt(i32));
    try between(name ++ ".kv_heads", cache.kv_heads, 1, 1 << 16);
    if (cache.page_size < 64 or cache.page_size > 4096 or !std.math.isPowerOfTwo(cache.page_size)) {
        return errors.fail(
            error.InvalidArgument,
            "expected {s}.page_size as a power of two from 64 to 4096, got {d}",
            .{ name, cache.page_size },
        );
    }
    try headDim(name ++ ".head_dim", cache.head_dim);
    if (@as(*const u32, @ptrCast(&cache.dtype)).* != @intFromEnum(DType.bf16)) {
        return errors.fail(error.InvalidArgument, "expected {s} of bf16", .{name});
    }
    if (layer >= cache.layers) {
        return errors.fail(
            error.InvalidArgument,
            "expected a layer of {s} below {d}, got {d}",
            .{ name, cache.layers, layer },
        );
    }
}

pub fn headDim(comptime name: []const u8, head_dim: u32) Error!void {
    switch (head_dim) {
        64, 96, 128, 256 => {},
        else => return errors.fail(
            error.InvalidArgument,
            "expected {s} of 64, 96, 128 or 256, got {d}",
            .{ name, head_dim },
        ),
    }
}

/// Query heads share KV heads in groups of 1 to 16.
pub fn headGroups(heads: u32, kv_heads: u32) Error!void {
    if (heads % kv_heads == 0 and heads / kv_heads >= 1 and heads / kv_heads <= 16) return;
    return errors.fail(
        error.InvalidArgument,
        "expected 1 to 16 query heads for each of {d} KV heads, got {d} query heads",
        .{ kv_heads, heads },
    );
}

test "shapes are told as a reader would say them" {
    var t: types.Tensor = .{ .data = 64, .shape = .{ 8, 128, 0, 0 }, .rank = 2, .dtype = .bf16 };
    const wanted = [_]Dim{ any("rows"), is(256) };
    try std.testing.expectError(error.InvalidArgument, tensor("x", &t, .bf16, &wanted));
    _ = errors.finish("md_linear", tensor("x", &t, .bf16, &wanted));
    try std.testing.expectEqualStrings(
        "md_linear: expected x of (rows, 256) bf16, got (8, 128) bf16",
        std.mem.span(errors.lastError()),
    );
    try tensor("x", &t, .bf16, &.{ is(8), any("k") });
    t.data = 65;
    try std.testing.expectError(
        error.InvalidArgument,
        tensor("x", &t, .bf16, &.{ is(8), any("k") }),
    );
    t = .{};
    _ = errors.finish("md_linear", tensor("x", &t, .bf16, &wanted));
    try std.testing.expectEqualStrings(
        "md_linear: expected x of (rows, 256) bf16, got none",
        std.mem.span(errors.lastError()),
    );
}
