// A few threads that wait for work. Tasks are taken from a common counter; which thread runs a task never matters.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace xpkern {

class ThreadPool {
  public:
    // The pool of this process; a forked child, whose parent's threads are gone, gets a new one. No lock: one that
    // another thread held at the time of the fork would never be released in the child.
    static ThreadPool& instance() {
        static std::atomic<ThreadPool*> pool{nullptr};
        ThreadPool* current = pool.load();
        while (current == nullptr || current->owner_ != getpid()) {
            ThreadPool* const fresh = new ThreadPool;  // never freed once it is in use: workers may outlive main
            if (pool.compare_exchange_strong(current, fresh)) return *fresh;
            delete fresh;
        }
        return *current;
    }

    // Runs task(i, worker) for i in [0, count) on the caller and up to threads - 1 workers; worker < threads.
    // The first exception of a task is thrown again here, after all threads have stopped.
    void run(int64_t count, int threads, const std::function<void(int64_t, int)>& task) {
        if (threads > count) threads = static_cast<int>(count);
        if (threads <= 1) {
            for (int64_t i = 0; i < count; ++i) task(i, 0);
            return;
        }
        const std::lock_guard<std::mutex> one_job_at_a_time(job_guard_);
        hire(threads - 1);
        {
            const std::lock_guard<std::mutex> lock(guard_);
            task_ = &task;
            count_ = count;
            next_ = 0;
            failure_ = nullptr;
            wanted_ = running_ = threads - 1 < workers_ ? threads - 1 : workers_;
            ++job_;
        }
        wake_.notify_all();
        take_tasks(0);
        std::unique_lock<std::mutex> lock(guard_);
        finished_.wait(lock, [this] { return running_ == 0; });
        if (failure_) std::rethrow_exception(failure_);
    }

  private:
    // Starts workers until there are that many, or as many as the system allows: the job is done by fewer then.
    void hire(int wanted) {
        try {
            for (; workers_ < wanted; ++workers_) {
                const int worker = workers_ + 1;
                std::thread([this, worker, seen = job_] { wait_for_work(worker, seen); }).detach();
            }
        } catch (const std::system_error&) {
        }
    }

    void wait_for_work(int worker, int64_t seen) {
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(guard_);
                wake_.wait(lock, [&] { return job_ != seen && worker <= wanted_; });
                seen = job_;
            }
            take_tasks(worker);
            const std::lock_guard<std::mutex> lock(guard_);
            if (--running_ == 0) finished_.notify_one();
        }
    }

    void take_tasks(int worker) {
        try {
            for (;;) {
                const int64_t i = next_.fetch_add(1);
                if (i >= count_) return;
                (*task_)(i, worker);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard_);
            if (!failure_) failure_ = std::current_exception();
            next_ = count_;
        }
    }

    const pid_t owner_ = getpid();
    std::mutex job_guard_, guard_;
    std::condition_variable wake_, finished_;
    const std::function<void(int64_t, int)>* task_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0, job_ = 0;
    int workers_ = 0, wanted_ = 0, running_ = 0;
    std::exception_ptr failure_;
};

}  // namespace xpkern
