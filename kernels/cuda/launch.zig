//! Launching a kernel: found by name at its first launch, then one driver call.
const std = @import("std");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const modules = @import("modules.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;

pub const Kernel = struct { module: modules.Module, name: [:0]const u8 };

pub const LaunchConfig = struct {
    grid: [3]u32,
    /// Threads of a block.
    block: u32,
    /// Dynamic shared memory of a block.
    shared_bytes: u32 = 0,
};

/// What every driver takes.
const max_param_bytes = 4096;

/// What is known of a kernel in this process.
pub const Slot = struct {
    handle: std.atomic.Value(?driver.KernelHandle) = .init(null),
    /// Serial number of the context that it was made ready for last; where contexts of one process
    /// take turns it is made ready again, which changes nothing.
    ready_for: std.atomic.Value(u32) = .init(0),
    /// Clusters that fit the GPU at a time, once asked; 0 before.
    clusters: std.atomic.Value(u32) = .init(0),
};

/// One for each kernel that the program names.
pub fn slotOf(comptime kernel: Kernel) *Slot {
    return &struct {
        const of = kernel;
        var slot: Slot = .{};
    }.slot;
}

/// `params` points to an extern struct: the kernel's only parameter.
pub fn checkParams(comptime P: type) void {
    const info = @typeInfo(P);
    if (info != .pointer or info.pointer.size != .one) @compileError(
        "expected a pointer to params, got " ++ @typeName(P),
    );
    const layout = @typeInfo(info.pointer.child);
    if (layout != .@"struct" or layout.@"struct".layout != .@"extern") @compileError(
        "expected params as an extern struct, got " ++ @typeName(info.pointer.child),
    );
    if (@sizeOf(info.pointer.child) > max_param_bytes) @compileError(
        @typeName(info.pointer.child) ++ " is too large for a kernel's parameter",
    );
}

pub fn enqueue(
    ctx: *Context,
    kernel: Kernel,
    slot: *Slot,
    config: LaunchConfig,
    params: *const anyopaque,
) Error!void {
    std.debug.assert(config.grid[0] > 0 and config.grid[1] > 0 and config.grid[2] > 0);
    if (slot.ready_for.load(.acquire) != ctx.serial) try makeReady(ctx, kernel, slot);
    const handle = slot.handle.load(.acquire).?;
    const functions = ctx.functions;
    const native = launchConfig(ctx, config);
    try ctx.check(functions.cuLaunchKernelEx(&native, handle, &.{params}, null), kernel.name);
}

/// Clusters of a kernel that has its cluster's size compiled in that fit the GPU at a time. The
/// multiprocessors of a cluster are neighbours, so it is fewer than their number says.
pub fn mostClusters(ctx: *Context, kernel: Kernel, slot: *Slot, config: LaunchConfig) Error!u32 {
    const known = slot.clusters.load(.acquire);
    if (known > 0 and slot.ready_for.load(.acquire) == ctx.serial) return known;
    if (slot.ready_for.load(.acquire) != ctx.serial) try makeReady(ctx, kernel, slot);
    var function: driver.FunctionHandle = undefined;
    try ctx.call(.cuKernelGetFunction, .{ &function, slot.handle.load(.acquire).? });
    var native = launchConfig(ctx, config);
    native.attribute_count = 0;
    var count: c_int = 0;
    try ctx.call(.cuOccupancyMaxActiveClusters, .{ &count, function, &native });
    const clusters: u32 = @intCast(@max(count, 1));
    slot.clusters.store(clusters, .release);
    return clusters;
}

/// Kernels overlap the end of the one before (griddepcontrol), where the GPU can.
fn launchConfig(ctx: *const Context, config: LaunchConfig) driver.LaunchConfig {
    const overlaps = ctx.capability >= 90;
    return .{
        .grid = config.grid,
        .block = .{ config.block, 1, 1 },
        .shared_bytes = config.shared_bytes,
        .stream = ctx.stream,
        .attributes = if (overlaps)
            &.{driver.LaunchAttribute.programmatic_stream_serialization}
        else
            null,
        .attribute_count = @intFromBool(overlaps),
    };
}

/// Loads the kernel's code into the context now rather than at the launch, which a capture may not
/// allow, and lets it use all the shared memory of a block that its static arrays leave.
fn makeReady(ctx: *Context, kernel: Kernel, slot: *Slot) Error!void {
    const mode = ctx.relaxCapture();
    defer ctx.restoreCapture(mode);
    const handle = try find(ctx, kernel, slot);
    var function: driver.FunctionHandle = undefined;
    try ctx.call(.cuKernelGetFunction, .{ &function, handle });
    try ctx.call(.cuFuncLoad, .{function});
    var static_bytes: c_int = 0;
    try ctx.call(.cuKernelGetAttribute, .{ &static_bytes, .shared_size, handle, ctx.device });
    const most = @as(c_int, @intCast(ctx.shared_bytes_per_block)) - static_bytes;
    try ctx.call(.cuKernelSetAttribute, .{ .max_dynamic_shared_size, most, handle, ctx.device });
    slot.ready_for.store(ctx.serial, .release);
}

fn find(ctx: *Context, kernel: Kernel, slot: *Slot) Error!driver.KernelHandle {
    modules.lock.acquire();
    defer modules.lock.release();
    if (slot.handle.load(.acquire)) |known| return known;
    const library = try modules.library(ctx, kernel.module);
    var handle: driver.KernelHandle = undefined;
    try ctx.check(ctx.functions.cuLibraryGetKernel(&handle, library, kernel.name), kernel.name);
    slot.handle.store(handle, .release);
    return handle;
}

test "a kernel has one slot, and other kernels have others" {
    const a: Kernel = .{ .module = .elementwise, .name = "md_a" };
    const b: Kernel = .{ .module = .elementwise, .name = "md_b" };
    try std.testing.expectEqual(slotOf(a), slotOf(.{ .module = .elementwise, .name = "md_a" }));
    try std.testing.expect(slotOf(a) != slotOf(b));
}

test "kernels overlap from compute capability 9.0 on" {
    var ctx: Context = undefined;
    ctx.stream = @ptrFromInt(64);
    ctx.capability = 89;
    const config: LaunchConfig = .{ .grid = .{ 7, 2, 1 }, .block = 128, .shared_bytes = 1 << 10 };
    const older = launchConfig(&ctx, config);
    try std.testing.expectEqual(0, older.attribute_count);
    ctx.capability = 90;
    const hopper = launchConfig(&ctx, config);
    try std.testing.expectEqual(1, hopper.attribute_count);
    try std.testing.expectEqual(6, hopper.attributes.?[0].id);
    try std.testing.expectEqual([3]c_uint{ 7, 2, 1 }, hopper.grid);
    try std.testing.expectEqual([3]c_uint{ 128, 1, 1 }, hopper.block);
    try std.testing.expectEqual(1 << 10, hopper.shared_bytes);
}
