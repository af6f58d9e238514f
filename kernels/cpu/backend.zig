//! The CPU as a device: memory is the process's own, the stream is an Executor, and kernels come
//! from the chosen level's table.
const std = @import("std");
const types = @import("../abi/types.zig");
const backend_mod = @import("../core/backend.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const kernel_mod = @import("kernel.zig");
const levels = @import("levels.zig");
const executor_mod = @import("executor.zig");
const probe_mod = @import("probe.zig");

const Error = errors.Error;
const State = backend_mod.State;
const Executor = executor_mod.Executor;
const Event = executor_mod.Event;
const Graph = executor_mod.Graph;
const gpa = std.heap.c_allocator;

/// More threads than any machine this is for has cores.
const max_threads = 1024;

const Cpu = struct {
    level: levels.Level,
    executor: *Executor,
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

/// Each op enqueues the level's kernel of the same name.
const ops: backend_mod.Ops = blk: {
    var result: backend_mod.Ops = undefined;
    for (@typeInfo(backend_mod.Ops).@"struct".fields) |field| {
        const Desc = @typeInfo(@typeInfo(field.type).pointer.child).@"fn".params[1].type.?;
        const Enqueue = struct {
            fn op(state: State, desc: Desc) Error!void {
                const self = cpu(state);
                return self.executor.enqueueKernel(&@field(self.level.table, field.name), desc);
            }
        };
        @field(result, field.name) = Enqueue.op;
    }
    break :blk result;
};

fn cpu(state: State) *Cpu {
    return @ptrCast(@alignCast(state));
}

fn eventOf(event: *anyopaque) *Event {
    return @ptrCast(@alignCast(event));
}

fn graphOf(graph: *anyopaque) *Graph {
    return @ptrCast(@alignCast(graph));
}

fn open(desc: *const types.ContextDesc) Error!State {
    if (desc.device != 0) return errors.fail(
        error.InvalidArgument,
        "expected device 0, the only CPU, got {d}",
        .{desc.device},
    );
    const threads = if (desc.threads == 0) os.usableCores() else desc.threads;
    if (threads > max_threads) return errors.fail(
        error.InvalidArgument,
        "expected at most {d} threads, got {d}",
        .{ max_threads, threads },
    );
    const level = try levels.choose(desc.level);
    const self = try gpa.create(Cpu);
    errdefer gpa.destroy(self);
    self.* = .{ .level = level, .executor = try Executor.create(gpa, threads) };
    return self;
}

fn close(state: State) void {
    const self = cpu(state);
    self.executor.destroy();
    gpa.destroy(self);
}

fn info(state: State) types.DeviceInfo {
    const self = cpu(state);
    const memory = os.memoryState();
    return .{
        .total_memory = memory.total,
        .available_memory = memory.available,
        .threads = self.executor.threadCount(),
        .level = self.level.name,
        .lanes = self.level.table.lanes,
        .bf16_dot = self.level.table.bf16_dot,
    };
}

fn alloc(_: State, kind: types.MemoryKind, bytes: u64) Error!backend_mod.Memory {
    const available = os.memoryState().available;
    if (bytes > available) return errors.fail(
        error.OutOfMemory,
        "expected at most the {d} bytes available, got {d}",
        .{ available, bytes },
    );
    const memory = os.mapMemory(@intCast(bytes)) catch
        return errors.fail(error.OutOfMemory, "the system refused {d} bytes", .{bytes});
    return .{ .address = @intFromPtr(memory.ptr), .bytes = memory.len, .kind = kind };
}

fn free(state: State, memory: backend_mod.Memory) void {
    cpu(state).executor.sync();
    const pages: [*]align(os.page_bytes) u8 = @ptrFromInt(memory.address);
    os.unmapMemory(pages[0..@intCast(memory.bytes)]);
}

fn write(state: State, destination: u64, bytes: []const u8) Error!void {
    return cpu(state).executor.enqueueWrite(destination, bytes);
}

fn read(state: State, host: []u8, source: u64) Error!void {
    cpu(state).executor.sync();
    @memcpy(host, @as([*]const u8, @ptrFromInt(source)));
}

fn fill(state: State, destination: u64, byte: u8, bytes: u64) Error!void {
    return cpu(state).executor.enqueue(
        .{ .fill = .{ .destination = destination, .bytes = bytes, .byte = byte } },
    );
}

fn sync(state: State) Error!void {
    cpu(state).executor.sync();
}

fn timestamp(state: State, destination: u64) Error!void {
    return cpu(state).executor.enqueue(.{ .timestamp = destination });
}

fn release(state: State, word: *os.Word) Error!void {
    return cpu(state).executor.enqueue(.{ .release = word });
}

fn eventCreate(_: State) Error!*anyopaque {
    const event = try gpa.create(Event);
    event.* = .{};
    return event;
}

fn eventRecord(state: State, event: *anyopaque) Error!void {
    return cpu(state).executor.enqueueMark(eventOf(event));
}

fn eventWait(_: State, event: *anyopaque) Error!void {
    eventOf(event).wait();
}

fn eventGraphs(event: *anyopaque) u32 {
    return eventOf(event).graphs;
}

fn eventDestroy(state: State, event: *anyopaque) void {
    cpu(state).executor.sync();
    gpa.destroy(eventOf(event));
}

fn graphBegin(state: State) Error!void {
    return cpu(state).executor.beginGraph();
}

fn graphEnd(state: State) Error!*anyopaque {
    return cpu(state).executor.endGraph();
}

fn graphLaunch(state: State, graph: *anyopaque) Error!void {
    return cpu(state).executor.enqueueLaunch(graphOf(graph));
}

fn graphDestroy(state: State, graph: *anyopaque) void {
    cpu(state).executor.sync();
    Executor.freeGraph(gpa, graphOf(graph));
}

fn weightBytes(state: State, n: u32, k: u32) u64 {
    return cpu(state).level.table.packed_weight_bytes(n, k);
}

fn attentionWorkspace(state: State, desc: *const types.AttentionDesc) u64 {
    return cpu(state).level.table.attention_workspace_bytes(desc);
}

fn probe(state: State, kind: types.ProbeKind, bytes: u64) Error!f64 {
    const self = cpu(state);
    return probe_mod.measure(self.executor, self.level.table, kind, @intCast(bytes));
}

fn trace(_: State) ?[]const u8 {
    return null;
}

fn traceClear(_: State) void {}
