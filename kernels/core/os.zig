//! The only door to the operating system: memory, files, threads, futexes, shared libraries,
//! clocks, limits. Linux and macOS.
const std = @import("std");
const builtin = @import("builtin");

const c = std.c;
const linux = std.os.linux;
const is_linux = builtin.os.tag == .linux;

pub const page_bytes = std.heap.page_size_min;
const huge_page_bytes = 2 << 20;

pub const Bytes = []align(page_bytes) u8;

/// Zeroed pages; from 2 MiB on aligned to huge pages, which the system is asked to use.
pub fn mapMemory(bytes: usize) error{OutOfMemory}!Bytes {
    const length = std.mem.alignForward(usize, @max(bytes, 1), page_bytes);
    if (length < huge_page_bytes) return mapPages(length);
    const whole = try mapPages(length + huge_page_bytes);
    const start = std.mem.alignForward(
        usize,
        @intFromPtr(whole.ptr),
        huge_page_bytes,
    ) - @intFromPtr(whole.ptr);
    if (start > 0) unmapMemory(whole[0..start]);
    unmapMemory(@alignCast(whole[start + length ..]));
    const result: Bytes = @alignCast(whole[start..][0..length]);
    // Advice only: without huge pages everything works, with more page faults.
    if (is_linux) _ = linux.madvise(result.ptr, result.len, linux.MADV.HUGEPAGE);
    return result;
}

fn mapPages(length: usize) error{OutOfMemory}!Bytes {
    const address = c.mmap(
        null,
        length,
        .{ .READ = true, .WRITE = true },
        .{ .TYPE = .PRIVATE, .ANONYMOUS = true },
        -1,
        0,
    );
    if (address == c.MAP_FAILED) return error.OutOfMemory;
    return @as([*]align(page_bytes) u8, @ptrCast(@alignCast(address)))[0..length];
}

pub fn unmapMemory(memory: []align(page_bytes) const u8) void {
    if (memory.len > 0) _ = c.munmap(
        memory.ptr,
        std.mem.alignForward(usize, memory.len, page_bytes),
    );
}

/// Maps a whole file for reading. An empty file is an empty slice.
pub fn mapFile(path: [*:0]const u8) error{ CannotOpen, CannotMap }![]align(page_bytes) const u8 {
    const file = c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (file < 0) return error.CannotOpen;
    defer _ = c.close(file);
    const end = c.lseek(file, 0, c.SEEK.END);
    if (end < 0) return error.CannotMap;
    const length: usize = @intCast(end);
    if (length == 0) return &.{};
    const address = c.mmap(null, length, .{ .READ = true }, .{ .TYPE = .PRIVATE }, file, 0);
    if (address == c.MAP_FAILED) return error.CannotMap;
    return @as([*]align(page_bytes) const u8, @ptrCast(@alignCast(address)))[0..length];
}

/// Nanoseconds of a clock that never goes back.
pub fn nanoseconds() u64 {
    var time: c.timespec = undefined;
    _ = c.clock_gettime(.MONOTONIC, &time);
    return @as(u64, @intCast(time.sec)) * std.time.ns_per_s + @as(u64, @intCast(time.nsec));
}

pub fn environment(name: [*:0]const u8) ?[]const u8 {
    return std.mem.span(c.getenv(name) orelse return null);
}

pub const Word = std.atomic.Value(u32);

/// Sleeps while `word` is `expected`; may return early.
pub fn wait(word: *const Word, expected: u32) void {
    if (is_linux) {
        _ = linux.futex_4arg(word, .{ .cmd = .WAIT, .private = true }, expected, null);
    } else {
        _ = c.__ulock_wait(.{ .op = .COMPARE_AND_WAIT, .NO_ERRNO = true }, word, expected, 0);
    }
}

/// Wakes at most `count` of those who sleep on `word`.
pub fn wake(word: *const Word, count: u32) void {
    if (is_linux) {
        _ = linux.futex_3arg(
            word,
            .{ .cmd = .WAKE, .private = true },
            @min(count, std.math.maxInt(i32)),
        );
    } else {
        _ = c.__ulock_wake(
            .{ .op = .COMPARE_AND_WAIT, .NO_ERRNO = true, .WAKE_ALL = count > 1 },
            word,
            0,
        );
    }
}

/// For what is held briefly, or seldom.
pub const Lock = struct {
    word: Word = .init(0),

    pub fn acquire(self: *Lock) void {
        while (self.word.swap(1, .acquire) != 0) wait(&self.word, 1);
    }

    pub fn release(self: *Lock) void {
        self.word.store(0, .release);
        wake(&self.word, 1);
    }
};

pub const Library = *anyopaque;

/// A shared library of the system's, by its name; null where there is none.
pub fn openLibrary(name: [*:0]const u8) ?Library {
    return c.dlopen(name, .{ .NOW = true });
}

pub fn findSymbol(library: Library, name: [*:0]const u8) ?*anyopaque {
    return c.dlsym(library, name);
}

pub const Thread = std.Thread;

/// A named thread that takes no signals: those belong to the host program.
pub fn spawn(comptime function: anytype, args: anytype) error{Unavailable}!Thread {
    var all: c.sigset_t = undefined;
    var previous: c.sigset_t = undefined;
    _ = c.sigfillset(&all);
    _ = c.pthread_sigmask(c.SIG.SETMASK, &all, &previous);
    defer _ = c.pthread_sigmask(c.SIG.SETMASK, &previous, &all);
    return Thread.spawn(.{ .stack_size = 4 << 20 }, function, args) catch error.Unavailable;
}

/// Shown by tools such as top; at most 15 bytes.
pub fn nameThisThread(name: [*:0]const u8) void {
    if (is_linux) {
        _ = c.pthread_setname_np(c.pthread_self(), name);
    } else {
        _ = c.pthread_setname_np(name);
    }
}

/// Cores that this process may use: its affinity, and the container's limit where there is one.
pub fn usableCores() u32 {
    const cores: u32 = @intCast(Thread.getCpuCount() catch 1);
    return @max(1, @min(cores, cgroupCores() orelse cores));
}

fn cgroupCores() ?u32 {
    if (!is_linux) return null;
    var buffer: [64]u8 = undefined;
    const text = readSmallFile("/sys/fs/cgroup/cpu.max", &buffer) orelse return null;
    var words = std.mem.tokenizeAny(u8, text, " \n");
    const quota = parse(words.next()) orelse return null;
    const period = parse(words.next()) orelse return null;
    return if (period == 0) null else @intCast(@max(1, (quota + period - 1) / period));
}

pub const MemoryState = struct { total: u64, available: u64 };

/// Bytes of this machine, or of the container where that allows less.
pub fn memoryState() MemoryState {
    if (!is_linux) return darwinMemory();
    var buffer: [4096]u8 = undefined;
    const text = readSmallFile("/proc/meminfo", &buffer) orelse "";
    var state: MemoryState = .{
        .total = meminfoRow(text, "MemTotal:") orelse 0,
        .available = meminfoRow(text, "MemAvailable:") orelse 0,
    };
    inline for (.{
        .{ "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current" },
        .{
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        },
    }) |paths| {
        if (smallNumber(paths[0])) |limit| {
            const used = smallNumber(paths[1]) orelse 0;
            state.total = @min(state.total, limit);
            state.available = @min(state.available, limit -| used);
        }
    }
    return state;
}

fn darwinMemory() MemoryState {
    var total: u64 = 0;
    var length: usize = @sizeOf(u64);
    if (c.sysctlbyname("hw.memsize", &total, &length, null, 0) != 0) total = 0;
    return .{ .total = total, .available = total };
}

fn meminfoRow(text: []const u8, name: []const u8) ?u64 {
    const at = std.mem.indexOf(u8, text, name) orelse return null;
    var words = std.mem.tokenizeAny(u8, text[at + name.len ..], " \n");
    return (parse(words.next()) orelse return null) * 1024;
}

fn smallNumber(path: [*:0]const u8) ?u64 {
    var buffer: [64]u8 = undefined;
    const text = readSmallFile(path, &buffer) orelse return null;
    return parse(std.mem.trim(u8, text, " \n"));
}

fn parse(text: ?[]const u8) ?u64 {
    return std.fmt.parseInt(u64, text orelse return null, 10) catch null;
}

fn readSmallFile(path: [*:0]const u8, buffer: []u8) ?[]const u8 {
    const file = c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (file < 0) return null;
    defer _ = c.close(file);
    const count = c.read(file, buffer.ptr, buffer.len);
    return if (count < 0) null else buffer[0..@intCast(count)];
}

test "memory is zeroed, aligned and can be given back" {
    for ([_]usize{ 1, page_bytes, 3 << 20 }) |bytes| {
        const memory = try mapMemory(bytes);
        defer unmapMemory(memory);
        try std.testing.expect(memory.len >= bytes);
        try std.testing.expect(std.mem.allEqual(u8, memory, 0));
        if (bytes > huge_page_bytes) try std.testing.expect(
            @intFromPtr(memory.ptr) % huge_page_bytes == 0,
        );
    }
}

test "limits are plausible" {
    const state = memoryState();
    try std.testing.expect(state.available > 0 and state.available <= state.total);
    try std.testing.expect(usableCores() >= 1);
}
