//! A GPU as a device: the primary context, one stream, and what kernels are planned by. Every call
//! enters it first.
const std = @import("std");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const launch_mod = @import("launch.zig");
const graph_mod = @import("graph.zig");
const staging_mod = @import("staging.zig");

const Error = errors.Error;
const gpa = std.heap.c_allocator;

pub const Kernel = launch_mod.Kernel;
pub const LaunchConfig = launch_mod.LaunchConfig;

/// 8.0: bf16 in the matrix units, and copies into shared memory past the registers.
const least_capability = 80;

/// The serial number of the context that this thread made current last.
threadlocal var current: u32 = 0;
var serials: std.atomic.Value(u32) = .init(0);

/// Devices whose primary context stays when the last of ours is closed, a bit each: making one
/// takes a good part of a second.
var kept: std.atomic.Value(u64) = .init(0);

pub const Context = struct {
    functions: *const driver.Driver,
    driver_version: u32,
    device: driver.Device,
    handle: driver.ContextHandle,
    stream: driver.Stream,
    /// Unique in this process, from 1 on.
    serial: u32,
    name: [64]u8 = @splat(0),

    sm_count: u32,
    /// 10 * major + minor.
    capability: u32,
    l2_bytes: u64,
    /// The most that one block may have.
    shared_bytes_per_block: u32,
    /// Address of `ticket_count` u32 zeros; kernels that count arrivals there leave zeros behind.
    tickets: u64 = 0,
    /// Address of `scratch_bytes` for what an op's own kernels hand on to each other.
    scratch: u64 = 0,

    staging: staging_mod.Staging = .{},
    /// The graph that is being captured.
    capture: ?*graph_mod.Graph = null,
    /// The error after which the driver refuses everything.
    lost: driver.Result = .success,

    pub const ticket_count = 1 << 16;
    pub const scratch_bytes = 64 << 20;

    pub fn hopper(self: *const Context) bool {
        return self.capability == 90;
    }

    /// Enqueues a kernel; `params` points to the extern struct that is its only parameter.
    pub fn launch(
        self: *Context,
        comptime kernel: Kernel,
        config: LaunchConfig,
        params: anytype,
    ) Error!void {
        comptime launch_mod.checkParams(@TypeOf(params));
        return launch_mod.enqueue(self, kernel, launch_mod.slotOf(kernel), config, params);
    }

    /// Clusters of blocks as `config` has them that fit the GPU at a time.
    pub fn mostClusters(self: *Context, comptime kernel: Kernel, config: LaunchConfig) Error!u32 {
        return launch_mod.mostClusters(self, kernel, launch_mod.slotOf(kernel), config);
    }

    /// A copy of `bytes` in device memory for the kernels enqueued next: how the bytes of a mapped
    /// file reach the GPU. At most `upload_bytes`; valid until the next upload, which waits for
    /// those kernels.
    pub fn upload(self: *Context, bytes: []const u8) Error!u64 {
        return self.staging.upload(self, bytes);
    }

    pub const upload_bytes = staging_mod.large_bytes;

    /// Begins every call: the driver looks at the context that is current in the calling thread.
    pub fn enter(self: *Context) Error!void {
        if (self.lost != .success) return errors.fail(
            error.Internal,
            "expected a sound CUDA context, this one is lost after {f}: " ++
                "destroy it and open another",
            .{self.described(self.lost)},
        );
        if (current == self.serial) return;
        try self.call(.cuCtxSetCurrent, .{self.handle});
        current = self.serial;
    }

    /// Begins what frees something: that is done as far as the driver lets it.
    pub fn enterToFree(self: *Context) void {
        if (self.functions.cuCtxSetCurrent(self.handle) == .success) current = self.serial;
        _ = self.functions.cuStreamSynchronize(self.stream);
    }

    /// Calls a function of the driver, and tells which one failed and how.
    pub fn call(self: *Context, comptime function: driver.Function, args: anytype) Error!void {
        const name = @tagName(function);
        return self.check(@call(.auto, @field(self.functions, name), args), name);
    }

    pub fn check(self: *Context, result: driver.Result, what: []const u8) Error!void {
        if (result != .success) return self.failed(result, what);
    }

    fn failed(self: *Context, result: driver.Result, what: []const u8) Error {
        @branchHint(.cold);
        if (result.losesContext()) self.lost = result;
        return errors.fail(
            result.toError(),
            "expected {s} to succeed, got {f}",
            .{ what, self.described(result) },
        );
    }

    fn described(self: *const Context, result: driver.Result) driver.Described {
        return .{ .driver = self.functions, .result = result };
    }

    pub fn sync(self: *Context) Error!void {
        return self.call(.cuStreamSynchronize, .{self.stream});
    }

    /// Allows what a capture forbids this thread, such as loading code, and gives what
    /// `restoreCapture` takes.
    pub fn relaxCapture(self: *Context) driver.CaptureMode {
        var mode: driver.CaptureMode = .relaxed;
        _ = self.functions.cuThreadExchangeStreamCaptureMode(&mode);
        return mode;
    }

    pub fn restoreCapture(self: *Context, mode: driver.CaptureMode) void {
        var previous = mode;
        _ = self.functions.cuThreadExchangeStreamCaptureMode(&previous);
    }

    pub const MemoryState = struct { free: u64, total: u64 };

    pub fn memoryState(self: *Context) Error!MemoryState {
        const mode = self.relaxCapture();
        defer self.restoreCapture(mode);
        var free: usize = 0;
        var total: usize = 0;
        try self.call(.cuMemGetInfo_v2, .{ &free, &total });
        return .{ .free = free, .total = total };
    }

    pub fn open(loaded: *const driver.Loaded, ordinal: u32) Error!*Context {
        const self = try gpa.create(Context);
        errdefer gpa.destroy(self);
        self.* = .{
            .functions = &loaded.functions,
            .driver_version = loaded.version,
            .device = undefined,
            .handle = undefined,
            .stream = undefined,
            .serial = serials.fetchAdd(1, .monotonic) + 1,
            .sm_count = undefined,
            .capability = undefined,
            .l2_bytes = undefined,
            .shared_bytes_per_block = undefined,
        };
        try self.findDevice(ordinal);
        try self.call(.cuDevicePrimaryCtxRetain, .{ &self.handle, self.device });
        errdefer _ = self.functions.cuDevicePrimaryCtxRelease_v2(self.device);
        self.keepPrimary();
        try self.enter();
        errdefer self.leave();
        try self.call(.cuStreamCreate, .{ &self.stream, driver.stream_non_blocking });
        errdefer _ = self.functions.cuStreamDestroy_v2(self.stream);
        const ticket_bytes = ticket_count * @sizeOf(u32);
        try self.call(.cuMemAlloc_v2, .{ &self.tickets, ticket_bytes });
        errdefer _ = self.functions.cuMemFree_v2(self.tickets);
        try self.call(.cuMemsetD8Async, .{ self.tickets, 0, ticket_bytes, self.stream });
        try self.call(.cuMemAlloc_v2, .{ &self.scratch, scratch_bytes });
        return self;
    }

    fn findDevice(self: *Context, ordinal: u32) Error!void {
        var count: c_int = 0;
        try self.call(.cuDeviceGetCount, .{&count});
        if (ordinal >= count) return errors.fail(
            error.InvalidArgument,
            "expected a device below {d}, the number of GPUs that the driver shows, got {d}",
            .{ count, ordinal },
        );
        try self.call(.cuDeviceGet, .{ &self.device, @as(c_int, @intCast(ordinal)) });
        try self.call(.cuDeviceGetName, .{ &self.name, self.name.len, self.device });
        self.sm_count = try self.attribute(.multiprocessor_count);
        self.l2_bytes = try self.attribute(.l2_cache_size);
        self.shared_bytes_per_block = try self.attribute(.max_shared_memory_per_block_optin);
        self.capability = try self.attribute(.compute_capability_major) * 10 +
            try self.attribute(.compute_capability_minor);
        if (self.capability < least_capability) return errors.fail(
            error.Unsupported,
            "expected a GPU of compute capability 8.0 or newer, got {d}.{d} ({s})",
            .{ self.capability / 10, self.capability % 10, self.nameText() },
        );
        // Ops take host memory by its own address.
        if (try self.attribute(.unified_addressing) == 0) return errors.fail(
            error.Unsupported,
            "expected a GPU that shares the host's addresses, {s} does not",
            .{self.nameText()},
        );
    }

    fn attribute(self: *Context, which: driver.DeviceAttribute) Error!u32 {
        var value: c_int = 0;
        try self.call(.cuDeviceGetAttribute, .{ &value, which, self.device });
        return @intCast(value);
    }

    fn nameText(self: *const Context) []const u8 {
        return std.mem.sliceTo(&self.name, 0);
    }

    /// Frees everything, as far as the driver still lets it.
    pub fn close(self: *Context) void {
        const functions = self.functions;
        self.enterToFree();
        self.staging.deinit(self);
        _ = functions.cuMemFree_v2(self.tickets);
        _ = functions.cuMemFree_v2(self.scratch);
        _ = functions.cuStreamDestroy_v2(self.stream);
        self.leave();
        if (self.lost != .success) self.dropPrimary();
        _ = functions.cuDevicePrimaryCtxRelease_v2(self.device);
        gpa.destroy(self);
    }

    fn keepPrimary(self: *Context) void {
        if (kept.fetchOr(self.keptBit(), .acq_rel) & self.keptBit() != 0) return;
        var same: driver.ContextHandle = undefined;
        _ = self.functions.cuDevicePrimaryCtxRetain(&same, self.device);
    }

    /// A lost one ends with the last context on it, so that the next to be made is sound.
    fn dropPrimary(self: *Context) void {
        if (kept.fetchAnd(~self.keptBit(), .acq_rel) & self.keptBit() == 0) return;
        _ = self.functions.cuDevicePrimaryCtxRelease_v2(self.device);
    }

    fn keptBit(self: *const Context) u64 {
        return @as(u64, 1) << @intCast(@mod(self.device, 64));
    }

    /// So that no thread keeps a context current that may be gone; others find out by the serial.
    fn leave(self: *Context) void {
        _ = self.functions.cuCtxSetCurrent(null);
        current = 0;
    }
};
