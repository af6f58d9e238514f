//! Memory of the GPU and pinned memory of the host, and copies between them and the caller's.
const std = @import("std");
const types = @import("../abi/types.zig");
const backend_mod = @import("../core/backend.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const driver = @import("driver.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;

/// Zeroed memory. A write or a kernel enqueued later comes after the zeros.
pub fn alloc(ctx: *Context, kind: types.MemoryKind, bytes: u64) Error!backend_mod.Memory {
    const available = switch (kind) {
        .device => (try ctx.memoryState()).free,
        .host => os.memoryState().available,
    };
    if (bytes > available) return refuse(available, bytes);
    const result = switch (kind) {
        .device => allocDevice(ctx, bytes),
        .host => allocHost(ctx, bytes),
    };
    // Less than what is free may still be too much, in one piece.
    return result catch |err| if (err == error.OutOfMemory) refuse(available, bytes) else err;
}

fn refuse(available: u64, bytes: u64) Error {
    return errors.fail(
        error.OutOfMemory,
        "expected at most the {d} bytes available, got {d}",
        .{ available, bytes },
    );
}

fn allocDevice(ctx: *Context, bytes: u64) Error!backend_mod.Memory {
    var address: u64 = 0;
    try ctx.call(.cuMemAlloc_v2, .{ &address, bytes });
    errdefer _ = ctx.functions.cuMemFree_v2(address);
    try ctx.call(.cuMemsetD8Async, .{ address, 0, bytes, ctx.stream });
    return .{ .address = address, .bytes = bytes, .kind = .device };
}

fn allocHost(ctx: *Context, bytes: u64) Error!backend_mod.Memory {
    var memory: [*]u8 = undefined;
    const flags = driver.host_alloc_portable | driver.host_alloc_mapped;
    try ctx.call(.cuMemHostAlloc, .{ &memory, bytes, flags });
    errdefer _ = ctx.functions.cuMemFreeHost(memory);
    var address: u64 = 0;
    try ctx.call(.cuMemHostGetDevicePointer_v2, .{ &address, memory, 0 });
    std.debug.assert(address == @intFromPtr(memory));
    @memset(memory[0..bytes], 0);
    return .{ .address = address, .bytes = bytes, .kind = .host };
}

/// Once nothing enqueued uses it any more.
pub fn free(ctx: *Context, memory: backend_mod.Memory) void {
    switch (memory.kind) {
        .device => _ = ctx.functions.cuMemFree_v2(memory.address),
        .host => _ = ctx.functions.cuMemFreeHost(@ptrFromInt(memory.address)),
    }
}

pub fn write(ctx: *Context, destination: u64, source: []const u8) Error!void {
    if (ctx.capture) |graph| return graph.addWrite(ctx, destination, source);
    return ctx.staging.write(ctx, destination, source);
}

pub fn read(ctx: *Context, host: []u8, source: u64) Error!void {
    try ctx.call(.cuMemcpyAsync, .{ @intFromPtr(host.ptr), source, host.len, ctx.stream });
    return ctx.sync();
}

pub fn fill(ctx: *Context, destination: u64, byte: u8, bytes: u64) Error!void {
    return ctx.call(.cuMemsetD8Async, .{ destination, byte, bytes, ctx.stream });
}
