//! How wide the loads and stores of a kernel may be, and how it is cut into blocks.
const std = @import("std");
const types = @import("../abi/types.zig");

/// Bytes of the widest access, and the values of bf16 in it.
pub const widest = 16;
pub const chunk = 8;

/// Whether 16-byte accesses may start at all these addresses; 0 stands for an absent one.
pub fn wide(addresses: []const u64) bool {
    return alignedTo(widest, addresses);
}

pub fn alignedTo(comptime bytes: u64, addresses: []const u64) bool {
    var all: u64 = 0;
    for (addresses) |address| all |= address;
    return all % bytes == 0;
}

/// Whether rows of n bf16 may be moved by 16-byte accesses.
pub fn wideRows(n: u32, addresses: []const u64) bool {
    return n % chunk == 0 and wide(addresses);
}

pub fn blocks(count: u64, per_block: u64) u32 {
    return @intCast((count + per_block - 1) / per_block);
}

/// Threads of a block for `count` pieces of work: whole warps, at most `most`.
pub fn threads(count: u64, most: u32) u32 {
    return @intCast(@min(most, std.mem.alignForward(u64, count, 32)));
}

pub fn elements(tensor: types.Tensor) u64 {
    var product: u64 = 1;
    for (tensor.shape[0..tensor.rank]) |extent| product *= extent;
    return product;
}

test "rows are wide where they start and end on 16 bytes" {
    try std.testing.expect(wideRows(64, &.{ 0x100, 0, 0x110 }));
    try std.testing.expect(!wideRows(65, &.{0x100}));
    try std.testing.expect(!wideRows(64, &.{ 0x100, 0x102 }));
    try std.testing.expect(alignedTo(4, &.{ 0x100, 12 }) and !alignedTo(4, &.{ 0x100, 6 }));
}

test "blocks cover the work, and are whole warps" {
    try std.testing.expectEqual(3, blocks(257, 128));
    try std.testing.expectEqual(32, threads(1, 256));
    try std.testing.expectEqual(96, threads(72, 256));
    try std.testing.expectEqual(256, threads(1000, 256));
}
