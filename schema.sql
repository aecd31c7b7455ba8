-- version: 3
-- Daguerre's tables. Every change of this file raises the version above by one. It is applied under an advisory lock at
-- the first start of each version, so every statement can run again; a later version changes a table with `alter table …
-- add column if not exists`. A start of an older version than was applied refuses.

-- The version that was applied last, and the SHA-256 of its file: a start that finds its version locks no table.
create table if not exists applied_schema (
    digest     bytea not null,
    applied_at timestamptz not null default now()
);
alter table applied_schema add column if not exists version integer not null default 1;
-- Without a default, the first version, which knows of no versions, cannot apply itself over a later one.
alter table applied_schema alter column version drop default;

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

-- How an account's pictures are delivered.
alter table accounts add column if not exists require_signature boolean not null default false;
alter table accounts add column if not exists strip_location boolean not null default false;

-- What the operator has done to an account. The API refuses the keys of one that is suspended, and no image is inserted
-- for it; its pictures are delivered unless that is stopped, too. One whose deletion has begun never comes back.
alter table accounts add column if not exists suspended_at timestamptz;
alter table accounts add column if not exists delivery_stopped boolean not null default false;
alter table accounts add column if not exists deletion_began_at timestamptz;
-- An account may store more than a quota that was lowered later, but no image may be younger than that.
alter table accounts add column if not exists max_bytes_set_at timestamptz not null default '-infinity';

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
-- The Idempotency-Key of the request that made the image, for 24 hours. Whether a request is the same one is
-- decided by sha256, or by the SHA-256 of the URL if the picture came from one. A row that fails releases the key.
alter table images add column if not exists idempotency_key text collate "C";
alter table images add column if not exists idempotency_url bytea;
-- What an unsupported picture is, in a few words: "12-bit JPEG".
alter table images add column if not exists error_kind text;
create unique index if not exists images_idempotency_key on images (account_id, idempotency_key)
    where idempotency_key is not null;
create index if not exists images_keys_by_age on images (created_at) where idempotency_key is not null;

-- The sweep's: stays as small as what is unfinished.
create index if not exists images_unfinished on images (created_at) where state <> 'ready';
-- An account's images in the order of the search; with their sizes, so that the counters' refresh is an index-only sum.
create index if not exists images_in_order on images (account_id, created_at, id) include (size)
    where state <> 'failed';
drop index if exists images_of_account;  -- its first form
-- The search by format and by content, each in its order. Only what is ready is found.
create index if not exists images_by_format on images (account_id, format, created_at, id) where state = 'ready';
create index if not exists images_by_sha256 on images (account_id, sha256, created_at, id) where state = 'ready';

-- The tags of ready images in the order of the search: an index over images.tags could find them, not order them.
-- Kept by a trigger, so whatever changes an image keeps it right; an image without tags never calls it.
create table if not exists image_tags (
    account_id bigint not null,
    tag        text collate "C" not null,
    created_at timestamptz not null,
    image_id   text collate "C" not null,
    primary key (account_id, tag, created_at, image_id)
);

create or replace function keep_image_tags() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' and old.state = 'ready' then
        delete from image_tags
        where account_id = old.account_id and tag = any(old.tags) and created_at = old.created_at and image_id = old.id
            and (tg_op = 'DELETE' or new.state <> 'ready' or tag <> all(new.tags));
    end if;
    if tg_op <> 'DELETE' and new.state = 'ready' then
        insert into image_tags
        select new.account_id, tag, new.created_at, new.id from unnest(new.tags) as tag
        on conflict do nothing;
    end if;
    return null;
end
$$;

-- Once: making a trigger keeps writers out until the commit, so no tag slips between the trigger and the first copy.
do $$
begin
    if exists (select from pg_trigger where tgname = 'images_tags_deleted' and tgrelid = 'images'::regclass) then
        return;
    end if;
    create trigger images_tags_inserted after insert on images for each row
        when (new.state = 'ready' and new.tags <> '{}') execute function keep_image_tags();
    create trigger images_tags_updated after update of state, tags on images for each row
        when ((old.tags, new.tags) <> ('{}', '{}') and (old.state, old.tags) <> (new.state, new.tags))
        execute function keep_image_tags();
    create trigger images_tags_deleted after delete on images for each row
        when (old.state = 'ready' and old.tags <> '{}') execute function keep_image_tags();
    insert into image_tags
    select account_id, tag, created_at, id from images, unnest(tags) as tag where state = 'ready'
    on conflict do nothing;
end
$$;

-- What URLs are signed with. Kept as they are: a signature can only be checked by making it again.
create table if not exists signing_keys (
    id         bigint generated always as identity primary key,
    account_id bigint not null references accounts on delete cascade,
    secret     text not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create index if not exists signing_keys_of_account on signing_keys (account_id, id);

-- Names for parameters of renditions, which URLs may use in place of them.
create table if not exists presets (
    account_id bigint not null references accounts on delete cascade,
    name       text collate "C" not null,
    parameters text not null,  -- as they stand in a URL: width=300&height=300&fit=cover
    changed_at timestamptz not null default now(),
    primary key (account_id, name)
);

-- Files to remove: noted by the statement that ends the row, cleared once the file is gone. So a process that
-- dies between the two leaves nothing behind, and no sweep has to read the storage folders.
create table if not exists removals (
    image_id   text collate "C" primary key,
    removed_at timestamptz not null default now()
);

-- What was made of images and lies in the folder of renditions. `digest` names it among those of its image; one with a
-- watermark goes with that image too. A row may outlive its image until the file is gone.
create table if not exists renditions (
    image_id     text collate "C" not null,
    digest       text collate "C" not null,
    watermark_id text collate "C",
    size         bigint not null,  -- bytes
    used_at      timestamptz not null default now(),  -- kept to some minutes
    primary key (image_id, digest)
);
create index if not exists renditions_by_use on renditions (used_at) include (size);
create index if not exists renditions_of_watermark on renditions (watermark_id) where watermark_id is not null;

-- How far the background scrub has read the originals: one row. A worker holds it by a lease, of PostgreSQL's clock.
create table if not exists scrub (
    single     boolean primary key default true check (single),
    holder     text not null,
    held_until timestamptz not null,
    started_at timestamptz,  -- of the round
    is_over    boolean not null default true,
    after_id   text collate "C" not null default '',
    done_cost  bigint not null default 0  -- bytes, with an allowance for each file
);

-- Images whose file the scrub has found damaged: each is named in the log once, until its file is whole again.
create table if not exists damaged_images (
    image_id text collate "C" primary key,
    what     text not null,
    found_at timestamptz not null default now()
);

-- The storage of the images: the id in the file `storage-id` there. In a folder with another id, or none, no file is
-- missing: its disk is not mounted.
create table if not exists storage (
    single boolean primary key default true check (single),
    id     text not null
);
