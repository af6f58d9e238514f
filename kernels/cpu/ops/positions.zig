//! Positions and cache lengths of the next rows, from the lengths in device memory.
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

pub const positions: kernel_mod.Kernel = kernel_mod.kernel(types.PositionsDesc, &.{Fill});

/// One item: a few hundred integers cost less than a second claim.
const Fill = struct {
    pub fn plan(_: *types.PositionsDesc, _: u32) u32 {
        return 1;
    }

    pub fn run(desc: *const types.PositionsDesc, _: u32, _: *const kernel_mod.Scratch) void {
        const b = desc.lens.shape[0];
        if (b == 0) return;
        const r = desc.positions.shape[0] / b;
        const lens = kernel_mod.pointer(i32, desc.lens);
        const out = kernel_mod.pointer(i32, desc.positions);
        const kv_len = kernel_mod.pointer(i32, desc.kv_len);
        for (0..b) |s| {
            const first = lens[s] + desc.offset;
            for (out[s * r ..][0..r], 0..) |*position, i| {
                position.* = first + @as(i32, @intCast(i));
            }
            kv_len[s] = first + @as(i32, @intCast(r));
        }
    }
};

test "positions and lengths of ragged sequences" {
    const std = @import("std");
    const testing = @import("../testing.zig");
    var lens = [_]i32{ 0, 7, 4095 };
    for ([_]u32{ 1, 4 }) |r| {
        for ([_]i32{ -1, 0, 3 }) |offset| {
            var out: [12]i32 = @splat(-9);
            var kv_len: [3]i32 = undefined;
            var desc: types.PositionsDesc = .{
                .lens = testing.tensor(@as([]i32, &lens), &.{3}),
                .positions = testing.tensor(@as([]i32, out[0 .. 3 * r]), &.{3 * r}),
                .kv_len = testing.tensor(@as([]i32, &kv_len), &.{3}),
                .offset = offset,
            };
            try testing.run(positions, &desc, 2);
            for (lens, kv_len, 0..) |len, got, s| {
                try std.testing.expectEqual(len + offset + @as(i32, @intCast(r)), got);
                for (0..r) |i| {
                    const want = len + offset + @as(i32, @intCast(i));
                    try std.testing.expectEqual(want, out[s * r + i]);
                }
            }
            for (out[3 * r ..]) |untouched| try std.testing.expectEqual(@as(i32, -9), untouched);
        }
    }
}
