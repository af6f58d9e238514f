//! Where elements lie in KV pages and packed weights on a GPU: src/layout.cuh for the host.
const std = @import("std");

/// Tokens of a KV tile.
pub const kv_tile = 64;

/// A packed weight is slabs of 16 rows and 128 k.
pub const slab_rows = 16;
pub const slab_k = 128;
const slab_elements = slab_rows * slab_k;

/// Element offset of (token in page, i) in one (layer, page, k or v, head) block.
pub fn kvOffset(token: u32, i: u32, head_dim: u32) u32 {
    const t = token % kv_tile;
    const panel = i / 64;
    const chunk = i % 64 / 8;
    const tile = token / kv_tile * kv_tile * head_dim + panel * (kv_tile * 64);
    const narrow = head_dim - panel * 64 < 64;
    const at = if (narrow) t * 32 + (chunk ^ (t / 2 % 4)) * 8 else t * 64 + (chunk ^ (t % 8)) * 8;
    return tile + at + i % 8;
}

fn kSlabs(k: u32) u64 {
    return (@as(u64, k) + slab_k - 1) / slab_k;
}

/// Bytes of a packed weight, its zero padding included.
pub fn weightBytes(n: u32, k: u32) u64 {
    const row_slabs = (@as(u64, n) + slab_rows - 1) / slab_rows;
    return row_slabs * kSlabs(k) * slab_elements * @sizeOf(u16);
}

/// Element offset of (row, column) of a packed weight.
pub fn weightOffset(row: u32, column: u32, k: u32) u64 {
    const slab = row / slab_rows * kSlabs(k) + column / slab_k;
    const r = row % 8;
    const group = row % slab_rows / 8;
    const half = column % slab_k / 64;
    const chunk = column % 64 / 8;
    return slab * slab_elements + group * 1024 + half * 512 + r * 64 + (chunk ^ r) * 8 + column % 8;
}

test "every element of a KV block has a place of its own, chunks of 8 stay whole" {
    const gpa = std.testing.allocator;
    for ([_]u32{ 64, 96, 128, 256 }) |head_dim| for ([_]u32{ 64, 256 }) |page_size| {
        var taken = try std.DynamicBitSet.initEmpty(gpa, page_size * head_dim);
        defer taken.deinit();
        for (0..page_size) |token| for (0..head_dim) |i| {
            const at = kvOffset(@intCast(token), @intCast(i), head_dim);
            try std.testing.expect(!taken.isSet(at));
            taken.set(at);
            const chunk_start = kvOffset(@intCast(token), @intCast(i / 8 * 8), head_dim);
            try std.testing.expectEqual(chunk_start + i % 8, at);
            try std.testing.expectEqual(0, chunk_start % 8);
        };
        try std.testing.expectEqual(page_size * head_dim, taken.count());
    };
}

test "every element of a packed weight has a place of its own inside its bytes" {
    const gpa = std.testing.allocator;
    for ([_][2]u32{ .{ 1, 1 }, .{ 16, 128 }, .{ 17, 129 }, .{ 150, 67 }, .{ 32, 576 } }) |shape| {
        const n, const k = shape;
        const rows: u32 = std.mem.alignForward(u32, n, slab_rows);
        const columns: u32 = std.mem.alignForward(u32, k, slab_k);
        try std.testing.expectEqual(@as(u64, rows) * columns * 2, weightBytes(n, k));
        var taken = try std.DynamicBitSet.initEmpty(gpa, rows * columns);
        defer taken.deinit();
        for (0..rows) |row| for (0..columns) |column| {
            const at = weightOffset(@intCast(row), @intCast(column), k);
            try std.testing.expect(!taken.isSet(at));
            taken.set(at);
        };
        try std.testing.expectEqual(rows * columns, taken.count());
    }
}

test "16 rows of a weight are one run of memory" {
    const k = 300;
    for (0..48) |row| for (0..k) |column| {
        const at = weightOffset(@intCast(row), @intCast(column), k);
        try std.testing.expectEqual(row / slab_rows, at / (kSlabs(k) * slab_elements));
    };
}
