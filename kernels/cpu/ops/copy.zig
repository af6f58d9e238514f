//! Strided copy of bytes: long runs are cut into pieces, short runs are taken several at a time.
//! Source and destination must not overlap.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

const item_bytes: u64 = 64 * 1024;

pub const copy = kernel_mod.kernel(types.CopyDesc, &.{Copy});

/// How the runs are cut: each run into `pieces` of `piece_bytes`, and `runs` whole runs to an item
/// where one piece holds a run.
const Cut = struct {
    pieces: u64,
    piece_bytes: u64,
    runs: u64,

    fn of(desc: *const types.CopyDesc) Cut {
        if (desc.bytes <= item_bytes) {
            const runs = item_bytes / @max(desc.bytes, 1);
            return .{ .pieces = 1, .piece_bytes = desc.bytes, .runs = runs };
        }
        // Pieces grow with very large copies, so that the number of items stays far below 2^32.
        const total = desc.bytes * desc.count;
        const piece_bytes = @max(item_bytes, total >> 20);
        const pieces = divCeil(desc.bytes, piece_bytes);
        return .{ .pieces = pieces, .piece_bytes = piece_bytes, .runs = 1 };
    }
};

fn divCeil(a: u64, b: u64) u64 {
    return (a + b - 1) / b;
}

const Copy = struct {
    pub fn plan(desc: *types.CopyDesc, _: u32) u32 {
        if (desc.bytes == 0) return 0;
        const cut: Cut = .of(desc);
        return @intCast(divCeil(desc.count, cut.runs) * cut.pieces);
    }

    pub fn run(desc: *const types.CopyDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const cut: Cut = .of(desc);
        const first = item / cut.pieces * cut.runs;
        const offset = item % cut.pieces * cut.piece_bytes;
        const bytes: usize = @intCast(@min(cut.piece_bytes, desc.bytes - offset));
        for (first..@min(desc.count, first + cut.runs)) |i| {
            const source: [*]const u8 = @ptrFromInt(desc.source + i * desc.source_stride + offset);
            const out: [*]u8 = @ptrFromInt(desc.out + i * desc.out_stride + offset);
            @memcpy(out[0..bytes], source);
        }
    }
};

const testing = @import("../testing.zig");

test "strided copy writes each run and nothing between" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    const shapes = [_][4]usize{
        .{ 0, 5, 8, 8 },             .{ 1, 1, 1, 1 },                .{ 7, 0, 7, 7 },
        .{ 3, 30000, 5, 4 },         .{ 512, 40, 1000, 513 },        .{ 65536, 3, 65536, 65600 },
        .{ 65537, 2, 70000, 65537 }, .{ 300001, 4, 300001, 300123 },
    };
    for (shapes) |shape| {
        const bytes, const count, const source_stride, const out_stride = shape;
        const source = try gpa.alloc(u8, count * source_stride + bytes);
        defer gpa.free(source);
        random.bytes(source);
        const out = try gpa.alloc(u8, count * out_stride + bytes);
        defer gpa.free(out);
        @memset(out, 0xee);
        const want = try gpa.dupe(u8, out);
        defer gpa.free(want);
        for (0..count) |i| {
            @memcpy(want[i * out_stride ..][0..bytes], source[i * source_stride ..][0..bytes]);
        }
        try testing.run(copy, &types.CopyDesc{
            .source = @intFromPtr(source.ptr),
            .out = @intFromPtr(out.ptr),
            .bytes = bytes,
            .source_stride = source_stride,
            .out_stride = out_stride,
            .count = @intCast(count),
        }, 2);
        try std.testing.expectEqualSlices(u8, want, out);
    }
}
