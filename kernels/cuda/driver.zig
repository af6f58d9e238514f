//! The CUDA driver's API, by hand: the functions used here, found in libcuda when the first CUDA
//! context is made, so that the library loads where there is no GPU. Symbols carry the version
//! suffix that cuda.h gives them by macros.
const std = @import("std");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");

const Error = errors.Error;

/// What the kernels are compiled with: CUDA 13.0.
pub const needed_version = 13000;
/// The first driver that runs it.
const needed_driver = "580";

pub const Result = enum(c_uint) {
    success = 0,
    out_of_memory = 2,
    no_device = 100,
    no_binary_for_gpu = 209,
    ecc_uncorrectable = 214,
    invalid_ptx = 218,
    nvlink_uncorrectable = 220,
    unsupported_ptx_version = 222,
    contained = 226,
    illegal_address = 700,
    launch_timeout = 702,
    context_is_destroyed = 709,
    assertion = 710,
    hardware_stack_error = 714,
    illegal_instruction = 715,
    misaligned_address = 716,
    invalid_address_space = 717,
    invalid_pc = 718,
    launch_failed = 719,
    not_supported = 801,
    _,

    /// The context is of no use after these, whatever is called.
    pub fn losesContext(self: Result) bool {
        return switch (self) {
            .ecc_uncorrectable,
            .nvlink_uncorrectable,
            .contained,
            .illegal_address,
            .launch_timeout,
            .context_is_destroyed,
            .assertion,
            .hardware_stack_error,
            .illegal_instruction,
            .misaligned_address,
            .invalid_address_space,
            .invalid_pc,
            .launch_failed,
            => true,
            else => false,
        };
    }

    pub fn toError(self: Result) Error {
        return switch (self) {
            .out_of_memory => error.OutOfMemory,
            .no_device => error.Unavailable,
            .no_binary_for_gpu,
            .invalid_ptx,
            .unsupported_ptx_version,
            .not_supported,
            => error.Unsupported,
            // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED to _WRONG_THREAD
            else => switch (@intFromEnum(self)) {
                900...908 => error.CaptureViolation,
                else => error.Internal,
            },
        };
    }
};

pub const Device = c_int;
pub const ContextHandle = *opaque {};
pub const Stream = *opaque {};
pub const Event = *opaque {};
pub const GraphHandle = *opaque {};
pub const GraphExec = *opaque {};
pub const LibraryHandle = *opaque {};
pub const KernelHandle = *opaque {};
/// A kernel in one context.
pub const FunctionHandle = *opaque {};

pub const DeviceAttribute = enum(c_uint) {
    multiprocessor_count = 16,
    l2_cache_size = 38,
    unified_addressing = 41,
    compute_capability_major = 75,
    compute_capability_minor = 76,
    max_shared_memory_per_block_optin = 97,
};

pub const KernelAttribute = enum(c_uint) { shared_size = 1, max_dynamic_shared_size = 8 };
pub const CaptureMode = enum(c_uint) { global = 0, thread_local = 1, relaxed = 2 };

pub const stream_non_blocking: c_uint = 1;
pub const event_disable_timing: c_uint = 2;
pub const event_record_external: c_uint = 1;
pub const host_alloc_portable: c_uint = 1;
pub const host_alloc_mapped: c_uint = 2;

/// A launch attribute: the value is a union of 64 bytes, whose first word is used here.
pub const LaunchAttribute = extern struct {
    id: c_uint,
    value: c_int align(8),
    rest: [60]u8 = @splat(0),

    pub const programmatic_stream_serialization: LaunchAttribute = .{ .id = 6, .value = 1 };
};

pub const LaunchConfig = extern struct {
    grid: [3]c_uint,
    block: [3]c_uint,
    shared_bytes: c_uint,
    stream: Stream,
    attributes: ?[*]const LaunchAttribute,
    attribute_count: c_uint,
};

comptime {
    std.debug.assert(@sizeOf(LaunchAttribute) == 72 and @sizeOf(LaunchConfig) == 56);
}

/// One field a function, named as the symbol.
pub const Driver = struct {
    cuInit: *const fn (flags: c_uint) callconv(.c) Result,
    cuDeviceGetCount: *const fn (*c_int) callconv(.c) Result,
    cuDeviceGet: *const fn (*Device, ordinal: c_int) callconv(.c) Result,
    cuDeviceGetName: *const fn ([*]u8, bytes: c_int, Device) callconv(.c) Result,
    cuDeviceGetAttribute: *const fn (*c_int, DeviceAttribute, Device) callconv(.c) Result,
    cuDevicePrimaryCtxRetain: *const fn (*ContextHandle, Device) callconv(.c) Result,
    cuDevicePrimaryCtxRelease_v2: *const fn (Device) callconv(.c) Result,
    cuCtxSetCurrent: *const fn (?ContextHandle) callconv(.c) Result,

    cuStreamCreate: *const fn (*Stream, flags: c_uint) callconv(.c) Result,
    cuStreamDestroy_v2: *const fn (Stream) callconv(.c) Result,
    cuStreamSynchronize: *const fn (Stream) callconv(.c) Result,
    cuStreamBeginCapture_v2: *const fn (Stream, CaptureMode) callconv(.c) Result,
    cuStreamEndCapture: *const fn (Stream, *?GraphHandle) callconv(.c) Result,
    cuThreadExchangeStreamCaptureMode: *const fn (*CaptureMode) callconv(.c) Result,

    cuGraphInstantiateWithFlags: *const fn (
        *GraphExec,
        GraphHandle,
        flags: u64,
    ) callconv(.c) Result,
    cuGraphUpload: *const fn (GraphExec, Stream) callconv(.c) Result,
    cuGraphLaunch: *const fn (GraphExec, Stream) callconv(.c) Result,
    cuGraphExecDestroy: *const fn (GraphExec) callconv(.c) Result,
    cuGraphDestroy: *const fn (GraphHandle) callconv(.c) Result,

    cuEventCreate: *const fn (*Event, flags: c_uint) callconv(.c) Result,
    cuEventRecord: *const fn (Event, Stream) callconv(.c) Result,
    cuEventRecordWithFlags: *const fn (Event, Stream, flags: c_uint) callconv(.c) Result,
    cuEventSynchronize: *const fn (Event) callconv(.c) Result,
    cuEventElapsedTime_v2: *const fn (*f32, start: Event, end: Event) callconv(.c) Result,
    cuEventDestroy_v2: *const fn (Event) callconv(.c) Result,

    cuMemGetInfo_v2: *const fn (free: *usize, total: *usize) callconv(.c) Result,
    cuMemAlloc_v2: *const fn (*u64, bytes: usize) callconv(.c) Result,
    cuMemFree_v2: *const fn (u64) callconv(.c) Result,
    cuMemHostAlloc: *const fn (*[*]u8, bytes: usize, flags: c_uint) callconv(.c) Result,
    cuMemHostGetDevicePointer_v2: *const fn (*u64, [*]u8, flags: c_uint) callconv(.c) Result,
    cuMemFreeHost: *const fn ([*]u8) callconv(.c) Result,
    cuMemsetD8Async: *const fn (u64, u8, bytes: usize, Stream) callconv(.c) Result,
    cuMemcpyAsync: *const fn (to: u64, from: u64, bytes: usize, Stream) callconv(.c) Result,

    cuLibraryLoadData: *const fn (
        *LibraryHandle,
        code: [*]const u8,
        jit_options: ?*const anyopaque,
        jit_values: ?*const anyopaque,
        jit_count: c_uint,
        options: ?*const anyopaque,
        values: ?*const anyopaque,
        count: c_uint,
    ) callconv(.c) Result,
    cuLibraryGetKernel: *const fn (*KernelHandle, LibraryHandle, [*:0]const u8) callconv(.c) Result,
    cuKernelGetFunction: *const fn (*FunctionHandle, KernelHandle) callconv(.c) Result,
    cuFuncLoad: *const fn (FunctionHandle) callconv(.c) Result,
    cuKernelGetAttribute: *const fn (
        *c_int,
        KernelAttribute,
        KernelHandle,
        Device,
    ) callconv(.c) Result,
    cuKernelSetAttribute: *const fn (
        KernelAttribute,
        c_int,
        KernelHandle,
        Device,
    ) callconv(.c) Result,
    cuOccupancyMaxActiveClusters: *const fn (
        *c_int,
        FunctionHandle,
        *const LaunchConfig,
    ) callconv(.c) Result,
    /// A kernel handle stands for the function of the current context.
    cuLaunchKernelEx: *const fn (
        *const LaunchConfig,
        KernelHandle,
        params: [*]const *const anyopaque,
        extra: ?*const anyopaque,
    ) callconv(.c) Result,
    cuTensorMapEncodeTiled: *const fn (
        map: *align(64) anyopaque,
        data_type: c_uint,
        rank: u32,
        address: u64,
        extents: [*]const u64,
        strides: [*]const u64,
        box: [*]const u32,
        element_strides: [*]const u32,
        interleave: c_uint,
        swizzle: c_uint,
        l2_promotion: c_uint,
        out_of_bounds_fill: c_uint,
    ) callconv(.c) Result,

    cuGetErrorName: *const fn (Result, *?[*:0]const u8) callconv(.c) Result,
    cuGetErrorString: *const fn (Result, *?[*:0]const u8) callconv(.c) Result,
};

pub const Function = std.meta.FieldEnum(Driver);

/// Where symbols come from: libcuda, or a test's stand-in.
pub const Lookup = *const fn (name: [*:0]const u8) ?*anyopaque;

/// The functions that load found, and the newest CUDA version that the driver runs.
pub const Loaded = struct { functions: Driver, version: u32 };

var lock: os.Lock = .{};
var process: ?Loaded = null;
var library: ?os.Library = null;

/// The driver of this process, loaded and initialised at the first call.
pub fn load() Error!*const Loaded {
    lock.acquire();
    defer lock.release();
    if (process == null) {
        library = library orelse os.openLibrary("libcuda.so.1") orelse
            os.openLibrary("libcuda.so") orelse return errors.fail(
            error.Unavailable,
            "expected an NVIDIA driver (libcuda.so.1), found none: install driver " ++
                needed_driver ++ " or newer, or use the cpu backend",
            .{},
        );
        process = try resolve(inLibrary);
    }
    return &process.?;
}

fn inLibrary(name: [*:0]const u8) ?*anyopaque {
    return os.findSymbol(library.?, name);
}

/// Finds every function and initialises the driver. The version comes first: an old driver lacks
/// some of the rest.
pub fn resolve(lookup: Lookup) Error!Loaded {
    const GetVersion = *const fn (*c_int) callconv(.c) Result;
    var version: c_int = 0;
    _ = (try find(lookup, "cuDriverGetVersion", GetVersion))(&version);
    if (version < needed_version) return errors.fail(
        error.Unavailable,
        "expected an NVIDIA driver for CUDA {f}, got one for CUDA {f}: install driver " ++
            needed_driver ++ " or newer, or use the cpu backend",
        .{ Version{ .number = needed_version }, Version{ .number = version } },
    );
    var loaded: Loaded = .{ .functions = undefined, .version = @intCast(version) };
    inline for (@typeInfo(Driver).@"struct".fields) |field| {
        @field(loaded.functions, field.name) = try find(lookup, field.name, field.type);
    }
    try initialise(&loaded.functions);
    return loaded;
}

fn find(lookup: Lookup, comptime name: [:0]const u8, comptime F: type) Error!F {
    const symbol = lookup(name) orelse return errors.fail(
        error.Unavailable,
        "expected {s} in libcuda.so.1, found none: install driver " ++ needed_driver ++
            " or newer, or use the cpu backend",
        .{name},
    );
    return @ptrCast(@alignCast(symbol));
}

fn initialise(driver: *const Driver) Error!void {
    const result = driver.cuInit(0);
    if (result != .success and result != .no_device) return errors.fail(
        error.Unavailable,
        "expected the NVIDIA driver to start, got {f}: check nvidia-smi, or use the cpu backend",
        .{Described{ .driver = driver, .result = result }},
    );
    var count: c_int = 0;
    if (result == .success) _ = driver.cuDeviceGetCount(&count);
    if (count == 0) return errors.fail(
        error.Unavailable,
        "expected a GPU, the NVIDIA driver sees none: " ++
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the cpu backend",
        .{},
    );
}

/// 13000 as "13.0".
pub const Version = struct {
    number: c_int,

    pub fn format(self: Version, w: *std.Io.Writer) std.Io.Writer.Error!void {
        const number: u32 = @intCast(@max(0, self.number));
        try w.print("{d}.{d}", .{ number / 1000, number % 1000 / 10 });
    }
};

/// "CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)".
pub const Described = struct {
    driver: *const Driver,
    result: Result,

    pub fn format(self: Described, w: *std.Io.Writer) std.Io.Writer.Error!void {
        var name: ?[*:0]const u8 = null;
        var text: ?[*:0]const u8 = null;
        _ = self.driver.cuGetErrorName(self.result, &name);
        _ = self.driver.cuGetErrorString(self.result, &text);
        if (name) |known| {
            try w.print("{s}", .{known});
        } else {
            try w.print("CUDA error {d}", .{@intFromEnum(self.result)});
        }
        if (text) |known| try w.print(" ({s})", .{known});
    }
};
