-- Daguerre's tables. Applied at every start under an advisory lock, so every statement can run again;
-- a later version changes a table with `alter table … add column if not exists`.

create table if not exists accounts (
    id           bigint generated always as identity primary key,
    name         text not null unique,
    max_bytes    bigint not null check (max_bytes >= 0),
    -- Moved by the statement that inserts or deletes images, so the quota is exact; refreshed from the
    -- images by a periodic job, so an error heals.
    used_bytes   bigint not null default 0,
    num_images   bigint not null default 0,
    created_at   timestamptz not null default now(),
    changed_at   timestamptz not null default now(),
    refreshed_at timestamptz not null default '-infinity'
) with (fillfactor = 50);  -- room for the counters' updates to stay on their page

create table if not exists api_keys (
    id           bigint generated always as identity primary key,
    account_id   bigint not null references accounts on delete cascade,
    key_hash     bytea not null unique,  -- SHA-256; a key is 40 random characters, so no salt or stretching
    hint         text not null,          -- its first characters, to tell keys apart in a list
    created_at   timestamptz not null default now(),
    last_used_at timestamptz,            -- kept to the hour
    revoked_at   timestamptz
);
create index if not exists api_keys_of_account on api_keys (account_id);

create table if not exists images (
    id           text collate "C" primary key,
    account_id   bigint not null references accounts on delete restrict,
    state        text not null default 'pending' check (state in ('pending', 'ready', 'failed')),
    size         bigint not null check (size > 0),  -- bytes
    sha256       bytea not null,
    tags         text[] not null default '{}',
    created_at   timestamptz not null default now(),

    -- what the probe found
    format       text,
    width        integer,
    height       integer,
    orientation  smallint,
    pages        integer,
    has_alpha    boolean,
    exif         json,   -- not jsonb: it is stored and answered, never searched
    mini_preview bytea,

    -- how it failed
    error        text,
    crashes      smallint not null default 0,  -- child processes that died of this picture
    failed_at    timestamptz
);
-- The sweep's: stays as small as what is unfinished.
create index if not exists images_unfinished on images (created_at) where state <> 'ready';
-- The counters' refresh: an index-only sum.
create index if not exists images_of_account on images (account_id) include (size) where state <> 'failed';

-- Files to remove: noted by the statement that ends the row, cleared once the file is gone. So a process that
-- dies between the two leaves nothing behind, and no sweep has to read the storage folders.
create table if not exists removals (
    image_id   text collate "C" primary key,
    removed_at timestamptz not null default now()
);
