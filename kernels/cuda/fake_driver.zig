//! A driver for tests, where there is no GPU: device memory is the host's, copies are done at the
//! call or, in a capture, at each launch of the graph, and kernels are counted, not run.
const std = @import("std");
const driver = @import("driver.zig");

const Result = driver.Result;
const gpa = std.heap.c_allocator;

/// What the next calls find; a test sets it and calls `reset` at its end.
pub var version: c_int = 13000;
pub var init_result: Result = .success;
pub var device_count: c_int = 2;
pub var capability: c_int = 90;
pub var missing_symbol: []const u8 = "";
pub var free_bytes: usize = 1 << 30;
pub var sync_result: Result = .success;

/// What calls have done.
pub var launches: u32 = 0;
pub var shared_limit: c_int = 0;
pub var memory_count: i32 = 0;
/// Primary contexts retained and not released.
pub var retained: i32 = 0;

var capturing: bool = false;
var captured: std.ArrayList(Copy) = .empty;

const Copy = struct { to: u64, from: u64, bytes: usize };

pub fn reset() void {
    version = 13000;
    init_result = .success;
    device_count = 2;
    capability = 90;
    missing_symbol = "";
    free_bytes = 1 << 30;
    sync_result = .success;
    launches = 0;
    shared_limit = 0;
    captured.clearAndFree(gpa);
}

pub fn lookup(name: [*:0]const u8) ?*anyopaque {
    const text = std.mem.span(name);
    if (std.mem.eql(u8, text, missing_symbol)) return null;
    inline for (@typeInfo(functions).@"struct".decls) |decl| {
        if (std.mem.eql(u8, text, decl.name)) {
            return @ptrCast(@constCast(&@field(functions, decl.name)));
        }
    }
    return @ptrCast(@constCast(&succeed));
}

/// Whatever its arguments are: the caller takes them off again.
fn succeed() callconv(.c) Result {
    return .success;
}

/// An object that nobody looks into.
fn handle(comptime Handle: type) Handle {
    return @ptrFromInt(64);
}

const functions = struct {
    pub fn cuDriverGetVersion(out: *c_int) callconv(.c) Result {
        out.* = version;
        return .success;
    }

    pub fn cuInit(_: c_uint) callconv(.c) Result {
        return init_result;
    }

    pub fn cuDeviceGetCount(out: *c_int) callconv(.c) Result {
        out.* = device_count;
        return .success;
    }

    pub fn cuDeviceGet(out: *driver.Device, ordinal: c_int) callconv(.c) Result {
        out.* = ordinal;
        return .success;
    }

    pub fn cuDeviceGetName(out: [*]u8, _: c_int, _: driver.Device) callconv(.c) Result {
        @memcpy(out, "Test GPU\x00");
        return .success;
    }

    pub fn cuDeviceGetAttribute(
        out: *c_int,
        attribute: driver.DeviceAttribute,
        _: driver.Device,
    ) callconv(.c) Result {
        out.* = switch (attribute) {
            .multiprocessor_count => 132,
            .l2_cache_size => 50 << 20,
            .unified_addressing => 1,
            .compute_capability_major => @divTrunc(capability, 10),
            .compute_capability_minor => @mod(capability, 10),
            .max_shared_memory_per_block_optin => 227 << 10,
        };
        return .success;
    }

    pub fn cuDevicePrimaryCtxRetain(
        out: *driver.ContextHandle,
        _: driver.Device,
    ) callconv(.c) Result {
        out.* = handle(driver.ContextHandle);
        retained += 1;
        return .success;
    }

    pub fn cuDevicePrimaryCtxRelease_v2(_: driver.Device) callconv(.c) Result {
        retained -= 1;
        return .success;
    }

    pub fn cuStreamCreate(out: *driver.Stream, _: c_uint) callconv(.c) Result {
        out.* = handle(driver.Stream);
        return .success;
    }

    pub fn cuStreamSynchronize(_: driver.Stream) callconv(.c) Result {
        return sync_result;
    }

    pub fn cuStreamBeginCapture_v2(_: driver.Stream, _: driver.CaptureMode) callconv(.c) Result {
        capturing = true;
        return .success;
    }

    pub fn cuStreamEndCapture(_: driver.Stream, out: *?driver.GraphHandle) callconv(.c) Result {
        capturing = false;
        out.* = handle(driver.GraphHandle);
        return .success;
    }

    pub fn cuGraphInstantiateWithFlags(
        out: *driver.GraphExec,
        _: driver.GraphHandle,
        _: u64,
    ) callconv(.c) Result {
        out.* = handle(driver.GraphExec);
        return .success;
    }

    pub fn cuGraphLaunch(_: driver.GraphExec, _: driver.Stream) callconv(.c) Result {
        for (captured.items) |copy| run(copy);
        return .success;
    }

    pub fn cuEventCreate(out: *driver.Event, _: c_uint) callconv(.c) Result {
        out.* = handle(driver.Event);
        return .success;
    }

    pub fn cuMemGetInfo_v2(free: *usize, total: *usize) callconv(.c) Result {
        free.* = free_bytes;
        total.* = 1 << 31;
        return .success;
    }

    pub fn cuMemAlloc_v2(out: *u64, bytes: usize) callconv(.c) Result {
        out.* = @intFromPtr(allocate(bytes));
        return .success;
    }

    pub fn cuMemFree_v2(address: u64) callconv(.c) Result {
        release(@ptrFromInt(address));
        return .success;
    }

    pub fn cuMemHostAlloc(out: *[*]u8, bytes: usize, _: c_uint) callconv(.c) Result {
        out.* = allocate(bytes);
        return .success;
    }

    pub fn cuMemHostGetDevicePointer_v2(
        out: *u64,
        memory: [*]u8,
        _: c_uint,
    ) callconv(.c) Result {
        out.* = @intFromPtr(memory);
        return .success;
    }

    pub fn cuMemFreeHost(memory: [*]u8) callconv(.c) Result {
        release(memory);
        return .success;
    }

    pub fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, _: driver.Stream) callconv(.c) Result {
        @memset(@as([*]u8, @ptrFromInt(to))[0..bytes], byte);
        return .success;
    }

    pub fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, _: driver.Stream) callconv(.c) Result {
        const copy: Copy = .{ .to = to, .from = from, .bytes = bytes };
        if (capturing) captured.append(gpa, copy) catch return .out_of_memory else run(copy);
        return .success;
    }

    pub fn cuKernelGetAttribute(
        out: *c_int,
        _: driver.KernelAttribute,
        _: driver.KernelHandle,
        _: driver.Device,
    ) callconv(.c) Result {
        out.* = 1 << 10;
        return .success;
    }

    pub fn cuKernelSetAttribute(
        _: driver.KernelAttribute,
        value: c_int,
        _: driver.KernelHandle,
        _: driver.Device,
    ) callconv(.c) Result {
        shared_limit = value;
        return .success;
    }

    pub fn cuOccupancyMaxActiveClusters(
        out: *c_int,
        _: driver.FunctionHandle,
        _: *const driver.LaunchConfig,
    ) callconv(.c) Result {
        out.* = 15;
        return .success;
    }

    pub fn cuLibraryGetKernel(
        out: *driver.KernelHandle,
        _: driver.LibraryHandle,
        _: [*:0]const u8,
    ) callconv(.c) Result {
        out.* = handle(driver.KernelHandle);
        return .success;
    }

    pub fn cuLaunchKernelEx(
        _: *const driver.LaunchConfig,
        _: driver.KernelHandle,
        _: [*]const *const anyopaque,
        _: ?*const anyopaque,
    ) callconv(.c) Result {
        launches += 1;
        return .success;
    }

    pub fn cuGetErrorName(result: Result, out: *?[*:0]const u8) callconv(.c) Result {
        out.* = switch (result) {
            .illegal_address => "CUDA_ERROR_ILLEGAL_ADDRESS",
            else => null,
        };
        return .success;
    }
};

fn run(copy: Copy) void {
    const to: [*]u8 = @ptrFromInt(copy.to);
    @memcpy(to[0..copy.bytes], @as([*]const u8, @ptrFromInt(copy.from)));
}

fn allocate(bytes: usize) [*]u8 {
    memory_count += 1;
    return @ptrCast(std.c.malloc(bytes) orelse unreachable);
}

fn release(memory: [*]u8) void {
    memory_count -= 1;
    std.c.free(memory);
}
