//! Device memory: allocation, and copies between it and the host.
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const objects = @import("objects.zig");

const Error = errors.Error;
const Status = types.Status;

pub fn md_memory_alloc(
    ctx: u32,
    kind: u32,
    bytes: f64,
    out: ?*types.Allocation,
) callconv(.c) Status {
    return errors.finish("md_memory_alloc", alloc(ctx, kind, bytes, out));
}

fn alloc(ctx: u32, kind_value: u32, byte_value: f64, maybe_out: ?*types.Allocation) Error!void {
    const out = try objects.required("out", maybe_out);
    const kind = try objects.enumValue(types.MemoryKind, "kind", kind_value);
    const bytes = try objects.byteCount(byte_value);
    if (bytes == 0) return errors.fail(
        error.InvalidArgument,
        "expected at least 1 byte, got 0",
        .{},
    );
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try context.requireNoCapture();
    const memory = try context.backend.alloc(context.state, kind, bytes);
    errdefer context.backend.free(context.state, memory);
    const handle = try objects.publish(
        objects.Memory,
        .memory,
        ctx,
        .{ .context = ctx, .memory = memory },
    );
    out.* = .{ .address = memory.address, .handle = handle };
}

pub fn md_memory_free(memory: u32) callconv(.c) Status {
    return errors.finish("md_memory_free", free(memory));
}

fn free(handle: u32) Error!void {
    const entered = try objects.enter(objects.Memory, .memory, handle);
    const context = entered.context;
    defer context.leave();
    try context.requireNoCapture();
    release(context, entered.object, handle);
}

fn release(context: *objects.Context, memory: *objects.Memory, handle: u32) void {
    context.backend.free(context.state, memory.memory);
    objects.retract(memory, handle);
}

/// For the end of a context.
pub fn destroyAll(context: *objects.Context, ctx: u32) void {
    var cursor: u32 = 0;
    while (handles.find(.memory, ctx, &cursor)) |handle| {
        release(context, handles.get(objects.Memory, .memory, handle) catch continue, handle);
    }
}

pub fn md_memory_write(
    ctx: u32,
    destination: usize,
    host: manifest.ConstHostBytes,
    bytes: f64,
) callconv(.c) Status {
    return errors.finish("md_memory_write", write(ctx, destination, host, bytes));
}

fn write(ctx: u32, destination: usize, host: manifest.ConstHostBytes, byte_value: f64) Error!void {
    const bytes = try objects.byteCount(byte_value);
    if (bytes == 0) return;
    const source = try objects.required("host", host);
    const target = try objects.address("destination", destination, 1);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    return context.backend.write(context.state, target, source[0..@intCast(bytes)]);
}

pub fn md_memory_read(
    ctx: u32,
    host: manifest.HostBytes,
    source: usize,
    bytes: f64,
) callconv(.c) Status {
    return errors.finish("md_memory_read", read(ctx, host, source, bytes));
}

fn read(ctx: u32, host: manifest.HostBytes, source: usize, byte_value: f64) Error!void {
    const bytes = try objects.byteCount(byte_value);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try context.requireNoCapture();
    if (bytes == 0) return;
    const target = try objects.required("host", host);
    return context.backend.read(
        context.state,
        target[0..@intCast(bytes)],
        try objects.address("source", source, 1),
    );
}

pub fn md_memory_fill(ctx: u32, destination: usize, byte: u32, bytes: f64) callconv(.c) Status {
    return errors.finish("md_memory_fill", fill(ctx, destination, byte, bytes));
}

fn fill(ctx: u32, destination: usize, byte: u32, byte_value: f64) Error!void {
    const bytes = try objects.byteCount(byte_value);
    if (byte > 255) return errors.fail(
        error.InvalidArgument,
        "expected byte of at most 255, got {d}",
        .{byte},
    );
    if (bytes == 0) return;
    const target = try objects.address("destination", destination, 1);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    return context.backend.fill(context.state, target, @intCast(byte), bytes);
}
