// Sharing tasks among threads, and the memory that each thread works in.
#ifndef POINT_KERNELS_PARALLEL_H
#define POINT_KERNELS_PARALLEL_H

#include <stdint.h>
#include <stdlib.h>

#include <new>

namespace point_kernels {

// Runs `worker(context)` on so many threads and waits for them; defined once, in dispatch.cpp. Throws std::bad_alloc
// if a worker did.
void run_on_threads(int threads, void (*worker)(void*), void* context);

}  // namespace point_kernels

namespace POINT_KERNELS_NAMESPACE {

// Numbers 0 to count - 1, each given out once.
class TaskQueue {
public:
    explicit TaskQueue(int64_t count) : count_(count) {}
    bool next(int64_t& task) {
        task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
        return task < count_;
    }

private:
    int64_t next_ = 0;
    const int64_t count_;
};

// Calls `worker(queue)` on up to `threads` threads; each draws tasks until there are none. `operations` is the size of
// all the work: starting a thread takes as long as some hundred thousand of them.
template <class Worker>
void share_tasks(int64_t tasks, double operations, int threads, const Worker& worker) {
    struct Context {
        TaskQueue queue;
        const Worker& worker;
    } context{TaskQueue(tasks), worker};
    const double worthwhile = 1 + operations / 5e5;
    if (threads > worthwhile) threads = int(worthwhile);
    if (threads > tasks) threads = int(tasks);
    point_kernels::run_on_threads(
        threads,
        [](void* opaque) {
            Context* context = static_cast<Context*>(opaque);
            context->worker(context->queue);
        },
        &context);
}

// An array on its own cache lines, not initialised.
template <class T>
class Buffer {
public:
    explicit Buffer(int64_t size) : data_(static_cast<T*>(aligned_alloc(64, (size * sizeof(T) + 127) / 64 * 64))) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Buffer() { free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    T* operator+(int64_t i) { return data_ + i; }
    const T* operator+(int64_t i) const { return data_ + i; }

private:
    T* const data_;
};

}  // namespace POINT_KERNELS_NAMESPACE
#endif
