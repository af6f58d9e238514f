//! Handles: a u32 of 20 bits index and 12 bits generation. A freed slot's generation moves on, so
//! an old handle is found out instead of followed. 0 is never a handle.
//!
//! Looking up takes no lock: an engine may live in each of several threads of a process. Making and
//! freeing do.
const std = @import("std");
const os = @import("os.zig");
const errors = @import("errors.zig");

pub const Handle = u32;

pub const Kind = enum(u8) { none, context, memory, event, graph, file };

const index_bits = 20;
const index_mask = (1 << index_bits) - 1;
const generation_mask = (1 << (32 - index_bits)) - 1;

/// More than any run needs, and small enough to stand in untouched zero pages.
const capacity = 1 << 16;

const Slot = struct {
    /// handle << 8 | kind while alive; 0 otherwise. Written last when made and first when freed.
    tag: std.atomic.Value(u64) = .init(0),
    object: ?*anyopaque = null,
    /// Handle of the context that this dies with; 0 for none.
    owner: Handle = 0,
    generation: u32 = 0,
    next_free: u32 = 0,
};

// Slot 0 stays unused, so that no live handle is 0 whatever its generation.
var slots: [capacity]Slot = @splat(.{});
var used: u32 = 1;
var first_free: u32 = 0;
var live: u32 = 0;
/// Held for a few instructions, and only where handles are made and freed.
var lock: os.Lock = .{};

pub fn make(kind: Kind, owner: Handle, object: *anyopaque) errors.Error!Handle {
    lock.acquire();
    defer lock.release();
    const index = if (first_free != 0) first_free else used;
    if (index == capacity) return errors.fail(
        error.OutOfMemory,
        "expected at most {d} live handles",
        .{capacity - 1},
    );
    const slot = &slots[index];
    if (first_free != 0) first_free = slot.next_free else used += 1;
    live += 1;
    const handle: Handle = slot.generation << index_bits | index;
    slot.object = object;
    slot.owner = owner;
    slot.tag.store(@as(u64, handle) << 8 | @intFromEnum(kind), .release);
    return handle;
}

/// The object behind a handle of this kind.
pub fn get(comptime T: type, kind: Kind, handle: Handle) errors.Error!*T {
    const index = handle & index_mask;
    if (index < capacity) {
        const slot = &slots[index];
        if (slot.tag.load(.acquire) == @as(u64, handle) << 8 | @intFromEnum(kind) and handle != 0) {
            return @ptrCast(@alignCast(slot.object.?));
        }
    }
    return describe(kind, handle);
}

fn describe(kind: Kind, handle: Handle) errors.Error {
    @branchHint(.cold);
    const index = handle & index_mask;
    const tag = if (index < capacity) slots[index].tag.load(.acquire) else 0;
    const name = @tagName(kind);
    if (handle == 0) return errors.fail(
        error.InvalidHandle,
        "expected handle of kind {s}, got 0",
        .{name},
    );
    if (tag >> 8 != handle) {
        return errors.fail(
            error.InvalidHandle,
            "expected handle of kind {s}, got {d}, which is not alive",
            .{ name, handle },
        );
    }
    const found: Kind = @enumFromInt(@as(u8, @truncate(tag)));
    return errors.fail(
        error.InvalidHandle,
        "expected handle of kind {s}, got one of kind {s}",
        .{ name, @tagName(found) },
    );
}

/// Frees the handle; the object is the caller's to free.
pub fn free(handle: Handle) void {
    lock.acquire();
    defer lock.release();
    const index = handle & index_mask;
    const slot = &slots[index];
    slot.tag.store(0, .release);
    slot.object = null;
    slot.generation = (slot.generation + 1) & generation_mask;
    slot.next_free = first_free;
    first_free = index;
    live -= 1;
}

/// A live handle of this kind and owner (any owner where null) at or after slot `from`, for walking
/// over them.
pub fn find(kind: Kind, owner: ?Handle, from: *u32) ?Handle {
    lock.acquire();
    defer lock.release();
    while (from.* < used) {
        const slot = &slots[from.*];
        from.* += 1;
        const tag = slot.tag.load(.monotonic);
        if (tag == 0 or @as(u8, @truncate(tag)) != @intFromEnum(kind)) continue;
        if (owner == null or owner.? == slot.owner) return @intCast(tag >> 8);
    }
    return null;
}

pub fn liveCount() u32 {
    lock.acquire();
    defer lock.release();
    return live;
}

test "stale, foreign and made-up handles are refused by name" {
    var a: u32 = 1;
    var b: u32 = 2;
    const before = liveCount();
    const first = try make(.memory, 0, &a);
    try std.testing.expect(first != 0);
    try std.testing.expectEqual(&a, try get(u32, .memory, first));
    try std.testing.expectError(error.InvalidHandle, get(u32, .event, first));
    try std.testing.expectError(error.InvalidHandle, get(u32, .memory, 0));
    try std.testing.expectError(error.InvalidHandle, get(u32, .memory, 0xffff_ffff));
    free(first);
    try std.testing.expectError(error.InvalidHandle, get(u32, .memory, first));
    const second = try make(.memory, 7, &b);
    defer free(second);
    try std.testing.expect(second != first);
    try std.testing.expectError(error.InvalidHandle, get(u32, .memory, first));
    try std.testing.expectEqual(before + 1, liveCount());
    var cursor: u32 = 0;
    try std.testing.expectEqual(second, find(.memory, 7, &cursor).?);
    try std.testing.expectEqual(null, find(.memory, 7, &cursor));
}

test "a generation comes back only after 4096 lives" {
    var object: u32 = 0;
    const first = try make(.event, 0, &object);
    free(first);
    for (1..generation_mask + 1) |_| {
        const next = try make(.event, 0, &object);
        try std.testing.expect(next != first);
        free(next);
    }
}
