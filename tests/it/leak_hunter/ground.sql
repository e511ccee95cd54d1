-- What both databases hold before the hunt begins; run in one, the other is a copy.

CREATE SCHEMA hunt;
CREATE SCHEMA one;
CREATE SCHEMA two;
CREATE SCHEMA "Three, four";
GRANT USAGE ON SCHEMA hunt, one, two, "Three, four" TO PUBLIC;

-- The same names with other contents: what a statement finds tells under which search_path it was looked up.
CREATE TABLE public.thing (x int, d date, note text);
CREATE TABLE one.thing (x int, d date, note text);
CREATE TABLE two.thing (x int, d date, note text);
CREATE TABLE "Three, four".thing (x int, d date, note text);
INSERT INTO public.thing VALUES (0, '2024-01-02', 'in public');
INSERT INTO one.thing VALUES (1, '2024-01-02', 'in one'), (11, '2024-03-04', 'in one, too');
INSERT INTO two.thing VALUES (2, '2024-01-02', 'in two');
INSERT INTO "Three, four".thing VALUES (3, '2024-01-02', 'in three'), (4, NULL, 'in four');
CREATE FUNCTION public.place() RETURNS text LANGUAGE sql AS $$ SELECT 'public' $$;
CREATE FUNCTION one.place() RETURNS text LANGUAGE sql AS $$ SELECT 'one' $$;
CREATE FUNCTION two.place() RETURNS text LANGUAGE sql AS $$ SELECT 'two' $$;

-- Each client's own: nobody else writes there, so nobody waits for a lock.
DO $$ BEGIN
    FOR client IN 0..7 LOOP
        EXECUTE format('CREATE TABLE hunt.own%s (id int PRIMARY KEY, note text, day date)', client);
        EXECUTE format('CREATE SEQUENCE hunt.seq%s', client);
        EXECUTE format('CREATE TABLE hunt.serial%s (id serial PRIMARY KEY, note text)', client);
    END LOOP;
END $$;
CREATE SEQUENCE hunt.seq;
GRANT ALL ON ALL TABLES IN SCHEMA hunt TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA public, one, two, "Three, four" TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA hunt TO PUBLIC;

-- State that the text of a statement does not tell of.
CREATE FUNCTION hunt.hidden_set(name text, value text) RETURNS text LANGUAGE sql AS
    $$ SELECT set_config(name, value, false) $$;
CREATE FUNCTION hunt.hidden_lock(key int) RETURNS bool LANGUAGE sql AS $$ SELECT pg_try_advisory_lock(key) $$;
CREATE FUNCTION hunt.hidden_table() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN CREATE TEMP TABLE IF NOT EXISTS hidden (x int); INSERT INTO hidden VALUES (1); END $$;
CREATE FUNCTION hunt.hidden_listen(channel text) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE format('LISTEN %I', channel); END $$;
CREATE FUNCTION hunt.hidden_prepare() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE 'PREPARE hidden AS SELECT 1'; END $$;
CREATE PROCEDURE hunt.hidden_steps(value text) LANGUAGE plpgsql AS $$ BEGIN
    EXECUTE format('SET work_mem = %L', value);
    COMMIT;
    EXECUTE 'SET work_mem = ''1GB''';
    ROLLBACK;
END $$;

-- What a client sees of itself. One call, so that the text of the question does not look like state. Not here are
-- currval and lastval: whoever asks for those has to show it. Without the quotes of default_text_search_config, which it
-- gets by quote_all_identifiers at the time when it is set, or put back.
CREATE FUNCTION hunt.view() RETURNS TABLE (pin bool, what text, value text) LANGUAGE plpgsql AS $$ BEGIN
    RETURN QUERY SELECT false, name, nullif(CASE name WHEN 'default_text_search_config'
        THEN replace(current_setting(name), '"', '') ELSE current_setting(name, true) END, '') FROM unnest(ARRAY[
        'application_name', 'array_nulls', 'backslash_quote', 'bytea_output', 'check_function_bodies',
        'client_encoding', 'client_min_messages', 'DateStyle', 'default_text_search_config',
        'default_transaction_deferrable', 'default_transaction_isolation', 'default_transaction_read_only',
        'enable_hashjoin', 'enable_seqscan', 'escape_string_warning', 'extra_float_digits',
        'gin_fuzzy_search_limit', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'IntervalStyle',
        'jit', 'lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time', 'lock_timeout', 'my.base', 'my.other', 'my.var',
        'My.Mixed', 'plan_cache_mode', 'quote_all_identifiers', 'role', 'row_security', 'search_path',
        'session_authorization', 'standard_conforming_strings', 'statement_timeout', 'synchronous_commit',
        'TimeZone', 'timezone_abbreviations', 'transaction_deferrable', 'transaction_isolation',
        'transaction_read_only', 'transform_null_equals', 'work_mem', 'xmlbinary', 'xmloption']) name
    UNION ALL SELECT false, 'users', current_user || ' ' || session_user
    UNION ALL SELECT true, 'listens', string_agg(channel, ' ' ORDER BY channel) FROM pg_listening_channels() channel
    UNION ALL SELECT true, 'temporary', string_agg(concat(relkind, ' ', relname), ', ' ORDER BY relname)
        FROM pg_class WHERE relnamespace = pg_my_temp_schema()
    UNION ALL SELECT true, 'locks', string_agg(concat_ws(' ', objsubid, classid, objid, mode), ', ' ORDER BY objsubid, classid, objid, mode)
        FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
    UNION ALL SELECT true, 'prepared', string_agg(concat_ws(' ', name, parameter_types), ', ' ORDER BY name)
        FROM pg_prepared_statements WHERE from_sql
    UNION ALL SELECT true, 'cursors', string_agg(concat_ws(' ', name, is_holdable), ', ' ORDER BY name)
        FROM pg_cursors;
END $$;
