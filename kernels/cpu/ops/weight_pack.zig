//! Row-major weight rows -> packed tiles (layout.zig).
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");
const simd = @import("../simd.zig");

/// Elements of k that are packed at a time: several cache lines of each row in a row, for the
/// prefetcher, and the part of the tile that they go to stays in L1.
const block = 128;

/// Distance of two rows before they are interleaved, in pairs: spread over all sets of the L1 cache.
const row_stride = block / 2 + 16;

pub const weight_pack = kernel_mod.kernel(types.PackDesc, &.{WeightPack});

/// An item is the part of one packed tile that the source rows fall into, so it writes only its own
/// rows' elements: other rows of a shared tile (q beside k) and the zero padding are left alone.
const WeightPack = struct {
    pub fn plan(desc: *types.PackDesc, _: u32) u32 {
        const rows = desc.source.shape[0];
        if (rows == 0) return 0;
        return (desc.row_offset + rows - 1) / layout.tile - desc.row_offset / layout.tile + 1;
    }

    pub fn run(desc: *const types.PackDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const tile_index = desc.row_offset / layout.tile + item;
        const first = @max(desc.row_offset, tile_index * layout.tile);
        const end = @min(desc.row_offset + desc.source.shape[0], (tile_index + 1) * layout.tile);
        const k: usize = desc.source.shape[1];
        const pairs = (k + 1) / 2;
        const weight: [*]u16 = @ptrFromInt(desc.weight.data);
        const out = weight + tile_index * pairs * layout.tile * 2;
        const columns = out + first % layout.tile * 2;
        const source_row = first - desc.row_offset;
        switch (desc.source.dtype) {
            .f32 => packRows(f32, desc.source.data, source_row, end - first, k, columns),
            else => packRows(u16, desc.source.data, source_row, end - first, k, columns),
        }
    }
};

/// Packs `count` rows from row `first` on into neighbouring columns of one tile. A mapped file's
/// tensors need not be aligned.
fn packRows(comptime T: type, data: u64, first: usize, count: usize, k: usize, out: [*]u16) void {
    const source: [*]align(1) const T = @ptrFromInt(data);
    const out_pairs: [*]u32 = @ptrCast(@alignCast(out));
    var start: usize = 0;
    while (start < k) : (start += block) {
        const length = @min(block, k - start);
        var rows: [layout.tile][row_stride]u32 = undefined;
        for (rows[0..count], 0..) |*row, i| {
            const values: *[block]u16 = @ptrCast(row);
            if (length % 2 == 1) values[length] = 0;
            convert(T, source + (first + i) * k + start, values[0..length]);
        }
        for (0..(length + 1) / 2) |pair| {
            const to = out_pairs + (start / 2 + pair) * layout.tile;
            for (rows[0..count], to) |*row, *value| value.* = row[pair];
        }
    }
}

inline fn convert(comptime T: type, from: [*]align(1) const T, to: []u16) void {
    if (T == u16) return @memcpy(to, from);
    var i: usize = 0;
    while (i + simd.W <= to.len) : (i += simd.W) {
        simd.storeBf16(to[i..].ptr, @as(*align(1) const simd.F, @ptrCast(from + i)).*);
    }
    while (i < to.len) : (i += 1) to[i] = simd.f32ToBf16(from[i]);
}

const testing = @import("../testing.zig");

fn packedOffset(row: usize, column: usize, k: usize) usize {
    const pairs = (k + 1) / 2;
    const in_tile = column / 2 * layout.tile + row % layout.tile;
    return (row / layout.tile * pairs * layout.tile + in_tile) * 2 + column % 2;
}

test "packed parts of one weight land in their places, from f32 or bf16 at any address" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const parts = [_]u32{ 70, 1, 64, 130 };
    const n = 70 + 1 + 64 + 130;
    for ([_]u32{ 1, 2, 31, 32, 33, 65, 200 }) |k| {
        const values = try testing.randomBf16(prng.random(), n * k, 1);
        defer gpa.free(values);
        const out = try gpa.alignedAlloc(u16, .@"64", layout.packedWeightBytes(n, k) / 2);
        defer gpa.free(out);
        @memset(out, 0);
        var row: u32 = 0;
        for (parts, 0..) |rows, i| {
            const count = rows * k;
            const bytes = try gpa.alloc(u8, count * 4 + 1);
            defer gpa.free(bytes);
            if (i % 2 == 0) {
                const from = std.mem.sliceAsBytes(values[row * k ..][0..count]);
                @memcpy(bytes[1..][0..from.len], from);
            } else for (values[row * k ..][0..count], 0..) |value, j| {
                const bits = @as(u32, value) << 16 | 0x7fff;
                std.mem.writeInt(u32, bytes[1 + 4 * j ..][0..4], bits, .little);
            }
            var source = testing.tensor(bytes[1..], &.{ rows, k });
            source.dtype = if (i % 2 == 0) .bf16 else .f32;
            try testing.run(weight_pack, &types.PackDesc{
                .source = source,
                .offset = 0,
                .weight = .{ .data = @intFromPtr(out.ptr), .bytes = out.len * 2, .n = n, .k = k },
                .row_offset = row,
                .file = 0,
            }, 2);
            row += rows;
        }
        const want = try gpa.alloc(u16, out.len);
        defer gpa.free(want);
        @memset(want, 0);
        for (0..n) |r| for (0..k) |c| {
            want[packedOffset(r, c, k)] = values[r * k + c];
        };
        try std.testing.expectEqualSlices(u16, want, out);
    }
}
