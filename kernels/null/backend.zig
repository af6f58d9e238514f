//! Records each call as a line of text and computes nothing, so that what TypeScript decides can be
//! tested anywhere. Memory is real and stays what the host wrote; sizes follow the CPU's layout.
//!
//! A line is "name key=value ...", tensors as their shape and dtype; inside a capture it begins
//! with "graph=N ".
const std = @import("std");
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const backend_mod = @import("../core/backend.zig");
const check = @import("../core/check.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const layout = @import("../cpu/layout.zig");

const Error = errors.Error;
const State = backend_mod.State;
const gpa = std.heap.c_allocator;

/// A test that forgets to read its trace should hear of it before the machine does.
const max_trace_bytes = 64 << 20;

const Null = struct {
    trace: std.Io.Writer.Allocating,
    threads: u32,
    graphs: u32 = 0,
    recording: ?*Graph = null,

    /// Begins a line.
    fn line(self: *Null, name: []const u8) Error!*std.Io.Writer {
        if (self.trace.written().len > max_trace_bytes) {
            return errors.fail(
                error.OutOfMemory,
                "expected a trace of at most {d} MiB: read it with md_trace_read",
                .{max_trace_bytes >> 20},
            );
        }
        const w = &self.trace.writer;
        if (self.recording) |graph| w.print(
            "graph={d} ",
            .{graph.number},
        ) catch return error.OutOfMemory;
        w.writeAll(name) catch return error.OutOfMemory;
        return w;
    }

    fn note(self: *Null, name: []const u8, comptime format: []const u8, args: anytype) Error!void {
        const w = try self.line(name);
        w.print(format ++ "\n", args) catch return error.OutOfMemory;
    }
};

const Event = struct { graphs: u32 = 0 };

const Graph = struct {
    number: u32,
    marks: std.ArrayList(*Event) = .empty,
};

pub const backend: backend_mod.Backend = .{
    .open = open,
    .close = close,
    .info = info,
    .alloc = alloc,
    .free = free,
    .write = write,
    .read = read,
    .fill = fill,
    .sync = sync,
    .timestamp = timestamp,
    .release = release,
    .event_create = eventCreate,
    .event_record = eventRecord,
    .event_wait = eventWait,
    .event_graphs = eventGraphs,
    .event_destroy = eventDestroy,
    .graph_begin = graphBegin,
    .graph_end = graphEnd,
    .graph_launch = graphLaunch,
    .graph_destroy = graphDestroy,
    .weight_bytes = weightBytes,
    .attention_workspace = attentionWorkspace,
    .probe = probe,
    .trace = trace,
    .trace_clear = traceClear,
    .ops = ops,
};

const ops: backend_mod.Ops = blk: {
    var result: backend_mod.Ops = undefined;
    for (manifest.ops) |op| {
        const Record = struct {
            fn call(state: State, desc: *const op.Desc) Error!void {
                const w = try stateOf(state).line(op.name);
                writeFields(op.Desc, w, desc) catch return error.OutOfMemory;
            }
        };
        @field(result, op.name) = Record.call;
    }
    break :blk result;
};

fn writeFields(comptime Desc: type, w: *std.Io.Writer, desc: *const Desc) std.Io.Writer.Error!void {
    inline for (@typeInfo(Desc).@"struct".fields) |field| {
        const value = &@field(desc, field.name);
        if (comptime std.mem.eql(u8, field.name, "reserved")) continue;
        switch (field.type) {
            types.Tensor => if (check.given(value.*)) {
                try w.print(" {s}={f}", .{ field.name, check.Shape{ .tensor = value } });
            },
            types.KvCache => if (check.given(value.*)) {
                try w.print(" {s}=({d}, {d}, 2, {d}, {d}, {d})", .{
                    field.name, value.layers, value.pages, value.kv_heads, value.page_size, value.head_dim,
                });
            },
            types.Weight => try w.print(
                " {s}=({d}, {d}) {t}",
                .{ field.name, value.n, value.k, value.format },
            ),
            u64 => if (comptime !isAddress(field.name)) try w.print(
                " {s}={d}",
                .{ field.name, value.* },
            ),
            else => if (@typeInfo(field.type) == .@"enum") {
                try w.print(" {s}={t}", .{ field.name, value.* });
            } else {
                try w.print(" {s}={d}", .{ field.name, value.* });
            },
        }
    }
    try w.writeAll("\n");
}

/// Addresses differ from run to run and would make every trace new.
fn isAddress(comptime name: []const u8) bool {
    return std.mem.eql(u8, name, "source") or std.mem.eql(u8, name, "out");
}

fn stateOf(state: State) *Null {
    return @ptrCast(@alignCast(state));
}

fn eventOf(event: *anyopaque) *Event {
    return @ptrCast(@alignCast(event));
}

fn graphOf(graph: *anyopaque) *Graph {
    return @ptrCast(@alignCast(graph));
}

fn open(desc: *const types.ContextDesc) Error!State {
    const self = try gpa.create(Null);
    self.* = .{ .trace = .init(gpa), .threads = @max(1, desc.threads) };
    return self;
}

fn close(state: State) void {
    const self = stateOf(state);
    self.trace.deinit();
    gpa.destroy(self);
}

fn info(state: State) types.DeviceInfo {
    const memory = os.memoryState();
    return .{
        .total_memory = memory.total,
        .available_memory = memory.available,
        .threads = stateOf(state).threads,
        .level = .auto,
        .lanes = 1,
    };
}

fn alloc(state: State, kind: types.MemoryKind, bytes: u64) Error!backend_mod.Memory {
    const available = os.memoryState().available;
    if (bytes > available) return errors.fail(
        error.OutOfMemory,
        "expected at most the {d} bytes available, got {d}",
        .{ available, bytes },
    );
    const memory = os.mapMemory(@intCast(bytes)) catch
        return errors.fail(error.OutOfMemory, "the system refused {d} bytes", .{bytes});
    errdefer os.unmapMemory(memory);
    try stateOf(state).note("memory_alloc", " kind={t} bytes={d}", .{ kind, bytes });
    return .{ .address = @intFromPtr(memory.ptr), .bytes = memory.len, .kind = kind };
}

fn free(_: State, memory: backend_mod.Memory) void {
    const pages: [*]align(os.page_bytes) u8 = @ptrFromInt(memory.address);
    os.unmapMemory(pages[0..@intCast(memory.bytes)]);
}

fn write(state: State, destination: u64, bytes: []const u8) Error!void {
    const self = stateOf(state);
    try self.note("memory_write", " bytes={d}", .{bytes.len});
    if (self.recording == null) @memcpy(@as([*]u8, @ptrFromInt(destination)), bytes);
}

fn read(state: State, host: []u8, source: u64) Error!void {
    try stateOf(state).note("memory_read", " bytes={d}", .{host.len});
    @memcpy(host, @as([*]const u8, @ptrFromInt(source)));
}

fn fill(state: State, destination: u64, byte: u8, bytes: u64) Error!void {
    const self = stateOf(state);
    try self.note("memory_fill", " byte={d} bytes={d}", .{ byte, bytes });
    if (self.recording == null) @memset(
        @as([*]u8, @ptrFromInt(destination))[0..@intCast(bytes)],
        byte,
    );
}

fn sync(state: State) Error!void {
    return stateOf(state).note("stream_sync", "", .{});
}

fn timestamp(state: State, _: u64) Error!void {
    return stateOf(state).note("timestamp", "", .{});
}

fn release(_: State, word: *os.Word) Error!void {
    _ = word.fetchSub(1, .release);
}

fn eventCreate(_: State) Error!*anyopaque {
    const event = try gpa.create(Event);
    event.* = .{};
    return event;
}

fn eventRecord(state: State, event: *anyopaque) Error!void {
    const self = stateOf(state);
    try self.note("event_record", "", .{});
    const graph = self.recording orelse return;
    try graph.marks.append(gpa, eventOf(event));
    eventOf(event).graphs += 1;
}

fn eventWait(state: State, _: *anyopaque) Error!void {
    return stateOf(state).note("event_wait", "", .{});
}

fn eventGraphs(event: *anyopaque) u32 {
    return eventOf(event).graphs;
}

fn eventDestroy(_: State, event: *anyopaque) void {
    gpa.destroy(eventOf(event));
}

fn graphBegin(state: State) Error!void {
    const self = stateOf(state);
    const graph = try gpa.create(Graph);
    self.graphs += 1;
    graph.* = .{ .number = self.graphs };
    self.recording = graph;
}

fn graphEnd(state: State) Error!*anyopaque {
    const self = stateOf(state);
    defer self.recording = null;
    return self.recording.?;
}

fn graphLaunch(state: State, graph: *anyopaque) Error!void {
    return stateOf(state).note("graph_launch", " graph={d}", .{graphOf(graph).number});
}

fn graphDestroy(_: State, state: *anyopaque) void {
    const graph = graphOf(state);
    for (graph.marks.items) |event| event.graphs -= 1;
    graph.marks.deinit(gpa);
    gpa.destroy(graph);
}

fn weightBytes(_: State, n: u32, k: u32) u64 {
    return layout.packedWeightBytes(n, k);
}

/// Nothing is computed, so nothing is needed; the least that can be allocated.
fn attentionWorkspace(_: State, _: *const types.AttentionDesc) u64 {
    return 64;
}

fn probe(_: State, _: types.ProbeKind, _: u64) Error!f64 {
    return errors.fail(
        error.Unsupported,
        "expected a backend that computes, got the null backend",
        .{},
    );
}

fn trace(state: State) ?[]const u8 {
    return stateOf(state).trace.written();
}

fn traceClear(state: State) void {
    stateOf(state).trace.clearRetainingCapacity();
}
