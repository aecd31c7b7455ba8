-- Claims at most `free` jobs that are due and that no worker runs, with their payloads, in the order of their accounts'
-- turns (service/queue/fair_dispatch.py). arq needs five round trips for each job instead. Also returns whether it left
-- jobs behind, and wakes the next worker for them; if it left none, wake-ups are removed. The time is that of Redis, as
-- it is where jobs are enqueued, because the clocks of hosts differ. If that clock was set back, a job that is due too
-- far in the future runs now, and a lease that is too long is shortened: its worker renews it if it is alive.
--
-- First, jobs of `later` whose time has come join the line of their account. Then jobs without a turn get one: the
-- script reads at most `page` jobs of arq's set from `offset` on, unless `offset` is negative and there is other work.
-- An account gets no more jobs than the room of its group, or `share` if no room is given.
local queue, wakeups, others_wakeups = KEYS[1], KEYS[2], KEYS[3]
local turns, later, accounts = KEYS[4], KEYS[5], KEYS[6]
local running, job, retry, line = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local free, lease_ms, max_wakeups, page = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local offset, was_woken, share = tonumber(ARGV[9]), ARGV[10] == '1', tonumber(ARGV[11])
local max_defer_ms = tonumber(ARGV[12])
local group, room = {}, {}
for i = 13, #ARGV, 3 do
    group[ARGV[i]], room[ARGV[i + 1]] = ARGV[i + 1], tonumber(ARGV[i + 2])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(id)
    redis.call('HDEL', accounts, id)
    redis.call('ZREM', later, id)
end
local function is_deferred(due)
    return due > now and due <= now + max_defer_ms
end
local function check_later(id, account, due)
    redis.call('HSET', accounts, id, account)
    redis.call('ZADD', later, due, id)
end
local function check_after_lease(id, account)
    local ttl_ms = redis.call('PTTL', running .. id)
    if ttl_ms > lease_ms then
        redis.call('PEXPIRE', running .. id, lease_ms)
        ttl_ms = lease_ms
    end
    check_later(id, account, now + (ttl_ms > 0 and ttl_ms or lease_ms))
end

local function check(id)
    local due = tonumber(redis.call('ZSCORE', queue, id))
    local account = redis.call('HGET', accounts, id) or ''
    if not due then
        forget(id)
    elseif is_deferred(due) then
        check_later(id, account, due)
    elseif redis.call('EXISTS', running .. id) == 1 then
        check_after_lease(id, account)
    else
        redis.call('ZREM', later, id)
        join(turns, accounts, line, id, account, due)
    end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, page)) do
    check(id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, now + max_defer_ms + 1, '+inf', 'LIMIT', 0, page)) do
    check(id)
end

local depth, known = redis.call('ZCARD', queue), redis.call('HLEN', accounts)
if depth == 0 and known > 0 then
    for _, account in ipairs(redis.call('ZRANGE', turns, 0, -1)) do
        redis.call('DEL', line .. account)
    end
    redis.call('DEL', turns, later, accounts)
elseif offset >= 0 or (depth ~= known and redis.call('EXISTS', turns) == 0) then
    offset = math.max(offset, 0)
    local jobs = redis.call('ZRANGE', queue, offset, offset + page - 1, 'WITHSCORES')
    for i = 1, #jobs, 2 do
        local id, due = jobs[i], tonumber(jobs[i + 1])
        if redis.call('HEXISTS', accounts, id) == 0 then
            if is_deferred(due) then
                check_later(id, '', due)
            else
                join(turns, accounts, line, id, '', due)
            end
        end
    end
    offset = #jobs == 2 * page and offset + page or 0
end

local claimed, has_more, skipped, dropped = {}, 0, 0, 0
local is_alone = redis.call('ZCARD', turns) == 1
while true do
    local account = redis.call('ZRANGE', turns, skipped, skipped)[1]
    if not account then
        break
    end
    local owner = group[account] or account
    if (room[owner] or share) <= 0 then
        skipped = skipped + 1
    elseif #claimed >= free or dropped >= page then
        has_more = 1
        break
    else
        local id = redis.call('ZPOPMIN', line .. account)[1]
        local due = id and tonumber(redis.call('ZSCORE', queue, id))
        local is_claimed = false
        if not due then
            if id then forget(id) end
        elseif is_deferred(due) then
            check_later(id, account, due)
        else
            is_claimed = redis.call('SET', running .. id, '1', 'NX', 'PX', lease_ms)
            if not is_claimed then check_after_lease(id, account) end
        end
        if is_claimed then
            redis.call('ZADD', later, now + lease_ms, id)
            room[owner] = (room[owner] or share) - 1
            local payload, tries = redis.call('GET', job .. id), redis.call('GET', retry .. id)
            claimed[#claimed + 1] = {id, account, due, payload, tries}
        else
            dropped = dropped + 1
        end
        if redis.call('EXISTS', line .. account) == 0 then
            redis.call('ZREM', turns, account)
        elseif is_claimed and not is_alone then
            give_last_turn(turns, account)
        end
    end
end
if redis.call('EXISTS', turns) == 0 then
    redis.call('DEL', wakeups, others_wakeups)  -- their jobs were claimed together with others
elseif was_woken or #claimed > 0 then
    redis.call('RPUSH', wakeups, '')
    redis.call('LTRIM', wakeups, -max_wakeups, -1)
end
return {has_more, skipped, claimed, now, offset}
