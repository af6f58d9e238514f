//! Waiting for the stream, events and the device clock.
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const objects = @import("objects.zig");

const Error = errors.Error;
const Status = types.Status;

pub fn md_stream_sync(ctx: u32) callconv(.c) Status {
    return errors.finish("md_stream_sync", sync(ctx));
}

fn sync(ctx: u32) Error!void {
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try context.requireNoCapture();
    return context.backend.sync(context.state);
}

pub fn md_timestamp(ctx: u32, destination: usize) callconv(.c) Status {
    return errors.finish("md_timestamp", timestamp(ctx, destination));
}

fn timestamp(ctx: u32, destination: usize) Error!void {
    const target = try objects.address("destination", destination, 8);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    return context.backend.timestamp(context.state, target);
}

pub fn md_event_create(ctx: u32, out: ?*u32) callconv(.c) Status {
    return errors.finish("md_event_create", eventCreate(ctx, out));
}

fn eventCreate(ctx: u32, maybe_out: ?*u32) Error!void {
    const out = try objects.required("out", maybe_out);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    const state = try context.backend.event_create(context.state);
    errdefer context.backend.event_destroy(context.state, state);
    out.* = try objects.publish(objects.Event, .event, ctx, .{ .context = ctx, .state = state });
}

pub fn md_event_record(event: u32) callconv(.c) Status {
    return errors.finish("md_event_record", eventRecord(event));
}

fn eventRecord(handle: u32) Error!void {
    const entered = try objects.enter(objects.Event, .event, handle);
    const context = entered.context;
    defer context.leave();
    return context.backend.event_record(context.state, entered.object.state);
}

pub fn md_event_wait(event: u32) callconv(.c) Status {
    return errors.finish("md_event_wait", eventWait(event));
}

fn eventWait(handle: u32) Error!void {
    const entered = try objects.enter(objects.Event, .event, handle);
    const context = entered.context;
    defer context.leave();
    try context.requireNoCapture();
    return context.backend.event_wait(context.state, entered.object.state);
}

pub fn md_event_destroy(event: u32) callconv(.c) Status {
    return errors.finish("md_event_destroy", eventDestroy(event));
}

fn eventDestroy(handle: u32) Error!void {
    const entered = try objects.enter(objects.Event, .event, handle);
    const context = entered.context;
    defer context.leave();
    try context.requireNoCapture();
    const graphs = context.backend.event_graphs(entered.object.state);
    if (graphs != 0) {
        return errors.fail(
            error.InvalidArgument,
            "expected an event that no graph marks, got one marked {d} times: destroy the graph first",
            .{graphs},
        );
    }
    release(context, entered.object, handle);
}

fn release(context: *objects.Context, event: *objects.Event, handle: u32) void {
    context.backend.event_destroy(context.state, event.state);
    objects.retract(event, handle);
}

/// For the end of a context, after its graphs.
pub fn destroyAll(context: *objects.Context, ctx: u32) void {
    var cursor: u32 = 0;
    while (handles.find(.event, ctx, &cursor)) |handle| {
        release(context, handles.get(objects.Event, .event, handle) catch continue, handle);
    }
}
