//! Row gather. An id outside the table gives a row of zeros: ids are device data, which no caller
//! can check beforehand.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

/// Elements of one item.
const item_elements: u32 = 16 * 1024;

pub const embedding = kernel_mod.kernel(types.EmbeddingDesc, &.{Embedding});

fn rowCount(desc: *const types.EmbeddingDesc) u32 {
    return desc.ids.shape[0] * desc.ids.shape[1];
}

fn rowsPerItem(n: u32) u32 {
    return @max(1, item_elements / n);
}

const Embedding = struct {
    pub fn plan(desc: *types.EmbeddingDesc, _: u32) u32 {
        const step = rowsPerItem(desc.table.shape[1]);
        return std.math.divCeil(u32, rowCount(desc), step) catch unreachable;
    }

    pub fn run(desc: *const types.EmbeddingDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const vocabulary = desc.table.shape[0];
        const n: usize = desc.table.shape[1];
        const columns: usize = desc.ids.shape[1];
        const step: usize = rowsPerItem(desc.table.shape[1]);
        const table = kernel_mod.pointer(u16, desc.table);
        const ids = kernel_mod.pointer(i32, desc.ids);
        const out = kernel_mod.pointer(u16, desc.out);
        for (item * step..@min(rowCount(desc), (item + 1) * step)) |row| {
            const id = ids[row / columns * desc.ids_stride + row % columns];
            const out_row = out[row * n ..][0..n];
            if (id >= 0 and id < vocabulary) {
                @memcpy(out_row, table[@as(usize, @intCast(id)) * n ..]);
            } else {
                @memset(out_row, 0);
            }
        }
    }
};

const testing = @import("../testing.zig");

test "embedding gathers a column range of the ids, and zeros for ids outside the table" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    const vocabulary = 50;
    for ([_]u32{ 1, 33, 256, 20000 }) |n| {
        const table = try testing.randomBf16(random, vocabulary * n, 1);
        defer gpa.free(table);
        const batch, const columns, const stride = .{ 9, 3, 7 };
        var ids: [batch * stride]i32 = undefined;
        for (&ids) |*id| id.* = random.intRangeLessThan(i32, 0, vocabulary);
        ids[2] = -1;
        ids[stride + 3] = vocabulary;
        ids[2 * stride + 4] = std.math.minInt(i32);
        const out = try gpa.alloc(u16, batch * columns * n);
        defer gpa.free(out);
        try testing.run(embedding, &types.EmbeddingDesc{
            .table = testing.tensor(table, &.{ vocabulary, n }),
            .ids = testing.tensor(ids[2..], &.{ batch, columns }),
            .out = testing.tensor(out, &.{ batch, columns, n }),
            .ids_stride = stride,
        }, 2);
        for (0..batch) |b| for (0..columns) |c| {
            const id = ids[2 + b * stride + c];
            const row = out[(b * columns + c) * n ..][0..n];
            if (id >= 0 and id < vocabulary) {
                const want = table[@as(usize, @intCast(id)) * n ..][0..n];
                try std.testing.expectEqualSlices(u16, want, row);
            } else for (row) |value| try std.testing.expectEqual(0, value);
        };
    }
}
