//! A GPU as a device: memory is its own, the stream and the graphs are the driver's, and each op
//! plans its launch from shapes alone.
const types = @import("../abi/types.zig");
const backend_mod = @import("../core/backend.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const driver = @import("driver.zig");
const graph_mod = @import("graph.zig");
const layout = @import("layout.zig");
const memory_mod = @import("memory.zig");
const modules = @import("modules.zig");
const probe_mod = @import("probe.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;
const State = backend_mod.State;
const Event = graph_mod.Event;
const Graph = graph_mod.Graph;

const attention_ops = @import("ops/attention.zig");

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
    .ops = .{
        .embedding = op(@import("ops/embedding.zig").embedding),
        .rms_norm = op(@import("ops/rms_norm.zig").rms_norm),
        .linear = op(@import("ops/linear.zig").linear),
        .weight_pack = op(@import("ops/weight_pack.zig").weight_pack),
        .rope_table = op(@import("ops/rope_table.zig").rope_table),
        .rope_append = op(@import("ops/rope_append.zig").rope_append),
        .attention = op(attention_ops.attention),
        .silu_mul = op(@import("ops/silu_mul.zig").silu_mul),
        .add = op(@import("ops/add.zig").add),
        .cast = op(@import("ops/cast.zig").cast),
        .copy = op(@import("ops/copy.zig").copy),
        .positions = op(@import("ops/positions.zig").positions),
        .keep_queries = op(@import("ops/keep_queries.zig").keep_queries),
        .snap_score = op(@import("ops/snap_score.zig").snap_score),
        .snap_select = op(@import("ops/snap_select.zig").snap_select),
        .gather_kv = op(@import("ops/gather_kv.zig").gather_kv),
        .sample = op(@import("ops/sample.zig").sample),
        .accept = op(@import("ops/accept.zig").accept),
        .publish = op(@import("ops/publish.zig").publish),
    },
};

/// The op's function, in the context that it is called for.
fn op(comptime function: anytype) backend_mod.Op(descOf(function)) {
    return struct {
        fn call(state: State, desc: *const descOf(function)) Error!void {
            return function(try enter(state), desc);
        }
    }.call;
}

fn descOf(comptime function: anytype) type {
    const Pointer = @typeInfo(@TypeOf(function)).@"fn".params[1].type.?;
    return @typeInfo(Pointer).pointer.child;
}

fn context(state: State) *Context {
    return @ptrCast(@alignCast(state));
}

fn enter(state: State) Error!*Context {
    const ctx = context(state);
    try ctx.enter();
    return ctx;
}

fn enterToFree(state: State) *Context {
    const ctx = context(state);
    ctx.enterToFree();
    return ctx;
}

fn eventOf(event: *anyopaque) *Event {
    return @ptrCast(@alignCast(event));
}

fn graphOf(graph: *anyopaque) *Graph {
    return @ptrCast(@alignCast(graph));
}

fn open(desc: *const types.ContextDesc) Error!State {
    const loaded = try driver.load();
    try modules.requireBuilt();
    return try Context.open(loaded, desc.device);
}

fn close(state: State) void {
    context(state).close();
}

fn info(state: State) types.DeviceInfo {
    const ctx = context(state);
    const none: Context.MemoryState = .{ .free = 0, .total = 0 };
    const memory = if (ctx.enter()) ctx.memoryState() catch none else |_| none;
    return .{
        .total_memory = memory.total,
        .available_memory = memory.free,
        .l2_bytes = ctx.l2_bytes,
        .compute_capability = ctx.capability,
        .multiprocessors = ctx.sm_count,
        .driver_version = ctx.driver_version,
        .name = ctx.name,
    };
}

fn alloc(state: State, kind: types.MemoryKind, bytes: u64) Error!backend_mod.Memory {
    return memory_mod.alloc(try enter(state), kind, bytes);
}

fn free(state: State, memory: backend_mod.Memory) void {
    memory_mod.free(enterToFree(state), memory);
}

fn write(state: State, destination: u64, bytes: []const u8) Error!void {
    return memory_mod.write(try enter(state), destination, bytes);
}

fn read(state: State, host: []u8, source: u64) Error!void {
    return memory_mod.read(try enter(state), host, source);
}

fn fill(state: State, destination: u64, byte: u8, bytes: u64) Error!void {
    return memory_mod.fill(try enter(state), destination, byte, bytes);
}

fn sync(state: State) Error!void {
    return (try enter(state)).sync();
}

const TimestampParams = extern struct { address: u64 };

fn timestamp(state: State, destination: u64) Error!void {
    const ctx = try enter(state);
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_timestamp" },
        .{ .grid = .{ 1, 1, 1 }, .block = 1 },
        &TimestampParams{ .address = destination },
    );
}

/// Whatever reads host memory here has copied it before its call returned.
fn release(_: State, word: *os.Word) Error!void {
    _ = word.fetchSub(1, .release);
}

fn eventCreate(state: State) Error!*anyopaque {
    return try Event.create(try enter(state));
}

fn eventRecord(state: State, event: *anyopaque) Error!void {
    return eventOf(event).record(try enter(state));
}

fn eventWait(state: State, event: *anyopaque) Error!void {
    return eventOf(event).wait(try enter(state));
}

fn eventGraphs(event: *anyopaque) u32 {
    return eventOf(event).graphs;
}

fn eventDestroy(state: State, event: *anyopaque) void {
    eventOf(event).destroy(enterToFree(state));
}

fn graphBegin(state: State) Error!void {
    return Graph.begin(try enter(state));
}

fn graphEnd(state: State) Error!*anyopaque {
    return try Graph.end(context(state));
}

fn graphLaunch(state: State, graph: *anyopaque) Error!void {
    return graphOf(graph).launch(try enter(state));
}

fn graphDestroy(state: State, graph: *anyopaque) void {
    graphOf(graph).destroy(enterToFree(state));
}

fn weightBytes(_: State, n: u32, k: u32) u64 {
    return layout.weightBytes(n, k);
}

fn attentionWorkspace(state: State, desc: *const types.AttentionDesc) u64 {
    return attention_ops.workspaceBytes(context(state), desc);
}

fn probe(state: State, kind: types.ProbeKind, bytes: u64) Error!f64 {
    return probe_mod.measure(try enter(state), kind, bytes);
}

fn trace(_: State) ?[]const u8 {
    return null;
}

fn traceClear(_: State) void {}
