//! Recording the ops of a step once and launching them as one command.
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const objects = @import("objects.zig");

const Error = errors.Error;
const Status = types.Status;

pub fn md_graph_begin(ctx: u32) callconv(.c) Status {
    return errors.finish("md_graph_begin", begin(ctx));
}

fn begin(ctx: u32) Error!void {
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try context.requireNoCapture();
    try context.backend.graph_begin(context.state);
    context.capturing = true;
}

pub fn md_graph_end(ctx: u32, out: ?*u32) callconv(.c) Status {
    return errors.finish("md_graph_end", end(ctx, out));
}

fn end(ctx: u32, maybe_out: ?*u32) Error!void {
    const context = try objects.enterContext(ctx);
    defer context.leave();
    if (!context.capturing) return errors.fail(
        error.InvalidArgument,
        "expected md_graph_begin before",
        .{},
    );
    context.capturing = false;
    const state = try context.backend.graph_end(context.state);
    const out = maybe_out orelse return context.backend.graph_destroy(context.state, state);
    errdefer context.backend.graph_destroy(context.state, state);
    out.* = try objects.publish(objects.Graph, .graph, ctx, .{ .context = ctx, .state = state });
}

pub fn md_graph_launch(graph: u32) callconv(.c) Status {
    return errors.finish("md_graph_launch", launch(graph));
}

fn launch(handle: u32) Error!void {
    const entered = try objects.enter(objects.Graph, .graph, handle);
    const context = entered.context;
    defer context.leave();
    try context.requireNoCapture();
    return context.backend.graph_launch(context.state, entered.object.state);
}

pub fn md_graph_destroy(graph: u32) callconv(.c) Status {
    return errors.finish("md_graph_destroy", destroy(graph));
}

fn destroy(handle: u32) Error!void {
    const entered = try objects.enter(objects.Graph, .graph, handle);
    const context = entered.context;
    defer context.leave();
    try context.requireNoCapture();
    release(context, entered.object, handle);
}

fn release(context: *objects.Context, graph: *objects.Graph, handle: u32) void {
    context.backend.graph_destroy(context.state, graph.state);
    objects.retract(graph, handle);
}

/// For the end of a context.
pub fn destroyAll(context: *objects.Context, ctx: u32) void {
    var cursor: u32 = 0;
    while (handles.find(.graph, ctx, &cursor)) |handle| {
        release(context, handles.get(objects.Graph, .graph, handle) catch continue, handle);
    }
}
