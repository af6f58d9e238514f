//! Contexts, device facts and what concerns the library as a whole.
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const backend_mod = @import("../core/backend.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const objects = @import("objects.zig");
const memory = @import("memory.zig");
const stream = @import("stream.zig");
const graph = @import("graph.zig");
const cpu_backend = @import("../cpu/backend.zig");
const cuda_backend = @import("../cuda/backend.zig");
const null_backend = @import("../null/backend.zig");

const Error = errors.Error;
const Status = types.Status;

pub fn md_abi_version() callconv(.c) u32 {
    return types.abi_version;
}

pub fn md_abi_hash_low() callconv(.c) u32 {
    return @truncate(manifest.hash);
}

pub fn md_abi_hash_high() callconv(.c) u32 {
    return @truncate(manifest.hash >> 32);
}

pub fn md_last_error() callconv(.c) manifest.CString {
    return errors.lastError();
}

pub fn md_context_create(desc: ?*const types.ContextDesc, out: ?*u32) callconv(.c) Status {
    return errors.finish("md_context_create", create(desc, out));
}

fn create(maybe_desc: ?*const types.ContextDesc, maybe_out: ?*u32) Error!void {
    const desc = try objects.required("desc", maybe_desc);
    const out = try objects.required("out", maybe_out);
    _ = try objects.enumValue(types.CpuLevel, "level", objects.rawEnum(&desc.level));
    const backend: *const backend_mod.Backend = switch (try objects.enumValue(
        types.Backend,
        "backend",
        objects.rawEnum(&desc.backend),
    )) {
        .cpu => &cpu_backend.backend,
        .null => &null_backend.backend,
        .cuda => &cuda_backend.backend,
    };
    const state = try backend.open(desc);
    errdefer backend.close(state);
    out.* = try objects.publish(
        objects.Context,
        .context,
        0,
        .{ .backend = backend, .state = state },
    );
}

pub fn md_context_destroy(ctx: u32) callconv(.c) Status {
    return errors.finish("md_context_destroy", destroy(ctx));
}

fn destroy(ctx: u32) Error!void {
    const context = try objects.enterContext(ctx);
    if (context.capturing) {
        if (context.backend.graph_end(context.state)) |unfinished| {
            context.backend.graph_destroy(context.state, unfinished);
        } else |_| {}
    }
    // Graphs before the events that they mark.
    graph.destroyAll(context, ctx);
    stream.destroyAll(context, ctx);
    memory.destroyAll(context, ctx);
    context.backend.close(context.state);
    objects.retract(context, ctx);
}

pub fn md_device_info(ctx: u32, out: ?*types.DeviceInfo) callconv(.c) Status {
    return errors.finish("md_device_info", info(ctx, out));
}

fn info(ctx: u32, maybe_out: ?*types.DeviceInfo) Error!void {
    const out = try objects.required("out", maybe_out);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    out.* = context.backend.info(context.state);
}

pub fn md_weight_bytes(ctx: u32, format: u32, n: u32, k: u32, out: ?*f64) callconv(.c) Status {
    return errors.finish("md_weight_bytes", weightBytes(ctx, format, n, k, out));
}

fn weightBytes(ctx: u32, format: u32, n: u32, k: u32, maybe_out: ?*f64) Error!void {
    const out = try objects.required("out", maybe_out);
    _ = try objects.enumValue(types.WeightFormat, "format", format);
    if (n == 0 or k == 0) return errors.fail(
        error.InvalidArgument,
        "expected n and k of at least 1, got {d} and {d}",
        .{ n, k },
    );
    const context = try objects.enterContext(ctx);
    defer context.leave();
    out.* = @floatFromInt(context.backend.weight_bytes(context.state, n, k));
}

/// One scan reads at most this much at once.
const max_probe_megabytes = 1 << 14;

pub fn md_probe(ctx: u32, kind: u32, megabytes: u32, out: ?*f64) callconv(.c) Status {
    return errors.finish("md_probe", probe(ctx, kind, megabytes, out));
}

fn probe(ctx: u32, kind_value: u32, megabytes: u32, maybe_out: ?*f64) Error!void {
    const out = try objects.required("out", maybe_out);
    const kind = try objects.enumValue(types.ProbeKind, "kind", kind_value);
    if (megabytes == 0 or megabytes > max_probe_megabytes) {
        return errors.fail(
            error.InvalidArgument,
            "expected 1 to {d} megabytes, got {d}",
            .{ max_probe_megabytes, megabytes },
        );
    }
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try context.requireNoCapture();
    out.* = try context.backend.probe(context.state, kind, @as(u64, megabytes) << 20);
}

pub fn md_live_handles(out: ?*u32) callconv(.c) Status {
    return errors.finish("md_live_handles", liveHandles(out));
}

fn liveHandles(maybe_out: ?*u32) Error!void {
    const out = try objects.required("out", maybe_out);
    out.* = handles.liveCount();
}

pub fn md_trace_read(
    ctx: u32,
    buffer: manifest.HostBytes,
    capacity: u32,
    needed: ?*u32,
) callconv(.c) Status {
    return errors.finish("md_trace_read", traceRead(ctx, buffer, capacity, needed));
}

fn traceRead(ctx: u32, buffer: manifest.HostBytes, capacity: u32, maybe_needed: ?*u32) Error!void {
    const needed = try objects.required("needed", maybe_needed);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    const text = context.backend.trace(context.state) orelse
        return errors.fail(
            error.Unsupported,
            "expected the null backend, which alone keeps a trace",
            .{},
        );
    needed.* = @intCast(text.len);
    if (capacity < text.len) return;
    if (text.len > 0) @memcpy((try objects.required("buffer", buffer))[0..text.len], text);
    context.backend.trace_clear(context.state);
}
