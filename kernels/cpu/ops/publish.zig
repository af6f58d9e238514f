//! Hands a record to the host through a ring that it reads without a synchronisation.
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

pub const publish: kernel_mod.Kernel = kernel_mod.kernel(types.PublishDesc, &.{Append});

const Append = struct {
    pub fn plan(_: *types.PublishDesc, _: u32) u32 {
        return 1;
    }

    /// The counter is stored with release order after the whole record, so a host that reads
    /// counter = n finds records n - slots + 1 .. n - 1 complete; record n - slots is the one that
    /// is being overwritten.
    pub fn run(desc: *const types.PublishDesc, _: u32, _: *const kernel_mod.Scratch) void {
        const slots = desc.ring.shape[0];
        const bytes = desc.ring.shape[1];
        const counter = &kernel_mod.pointer(u32, desc.counter)[0];
        const count = counter.*;
        const slot = kernel_mod.pointer(u8, desc.ring) + @as(usize, count % slots) * bytes;
        @memcpy(slot[0..bytes], kernel_mod.pointer(u8, desc.record)[0..bytes]);
        @atomicStore(u32, counter, count +% 1, .release);
    }
};

test "a ring keeps the last records in order" {
    const std = @import("std");
    const testing = @import("../testing.zig");
    const slots = 3;
    var record: [5]u8 = undefined;
    var ring: [slots * 5]u8 = @splat(0xee);
    var counter = [_]u32{0};
    var desc: types.PublishDesc = .{
        .record = testing.tensor(@as([]u8, &record), &.{5}),
        .ring = testing.tensor(@as([]u8, &ring), &.{ slots, 5 }),
        .counter = testing.tensor(@as([]u32, &counter), &.{1}),
    };
    for (0..10) |n| {
        for (&record, 0..) |*byte, i| byte.* = @intCast(10 * n + i);
        try testing.run(publish, &desc, 2);
        try std.testing.expectEqual(@as(u32, @intCast(n + 1)), counter[0]);
        for (0..@min(n + 1, slots)) |age| {
            const index = n - age;
            for (ring[index % slots * 5 ..][0..5], 0..) |byte, i| {
                try std.testing.expectEqual(@as(u8, @intCast(10 * index + i)), byte);
            }
        }
    }
}
