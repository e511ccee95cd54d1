//! The roles that a dump names, as owners, in grants and in policies; and others put in their place.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::{Archive, Entry};
use crate::lifecycle::quote;
use crate::sql::lex::{Kind, Lexer, Token};

/// Kinds of entries whose SQL names roles. Elsewhere they only are owners, which have a field of their own.
const WITH_ROLES: [&str; 4] = ["ACL", "DEFAULT ACL", "POLICY", USER_MAPPING];
pub const USER_MAPPING: &str = "USER MAPPING";
/// pg_dump writes the owner of these down, and pg_restore makes none of them.
const NOT_RESTORED: [&str; 2] = ["DATABASE", "DATABASE PROPERTIES"];

/// Every role that the dump needs.
pub fn named(archive: &Archive) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in restored(archive) {
        names.extend(entry.owner.clone().filter(|owner| !owner.is_empty()));
        for token in places(entry) {
            names.insert(name(&token, definition(entry)));
        }
    }
    names.remove("public");
    names
}

/// Puts the roles' successors in their places.
pub fn rename(archive: &mut Archive, successors: &BTreeMap<String, String>) {
    for entry in &mut archive.entries {
        let of_superusers = entry.kind.as_deref() == Some("FOREIGN DATA WRAPPER");
        if let Some(owner) = entry.owner.as_ref().and_then(|owner| successors.get(owner)) {
            entry.owner = Some(if of_superusers { String::new() } else { owner.clone() });
        }
        let (mut text, mut done) = (String::new(), 0);
        let old = definition(entry);
        for token in places(entry) {
            let Some(successor) = successors.get(&name(&token, old)) else { continue };
            let quoted = usize::from(matches!(token.kind, Kind::Quoted { .. }));
            text += &old[done..token.start - quoted];
            text += &quote::identifier(successor);
            done = token.end + quoted;
        }
        if done > 0 {
            text += &old[done..];
            entry.definition = Some(without_sessions(&text));
        }
    }
}

/// Roles that own something in a schema that is another's, with the schema: to be given objects there they have to have the
/// right to make some.
pub fn guests(archive: &Archive) -> BTreeSet<(String, String)> {
    let schemas = archive.entries.iter().filter(|entry| entry.kind.as_deref() == Some("SCHEMA"));
    let hosts: BTreeMap<&str, &str> =
        schemas.filter_map(|entry| Some((entry.tag.as_deref()?, entry.owner.as_deref()?))).collect();
    let owned = restored(archive).filter_map(|entry| Some((entry.schema.as_deref()?, entry.owner.as_deref()?)));
    owned
        .filter(|(schema, owner)| !schema.is_empty() && !owner.is_empty() && hosts.get(schema) != Some(owner))
        .map(|(schema, owner)| (schema.to_owned(), owner.to_owned()))
        .collect()
}

/// Whether the dump itself lets this role make objects in the schema.
pub fn may_create(archive: &Archive, schema: &str, role: &str) -> bool {
    let role = quote::identifier(role);
    let tag = format!("SCHEMA {schema}");
    let grants = archive.entries.iter().filter(|entry| entry.kind.as_deref() == Some("ACL"));
    grants.filter(|entry| entry.tag.as_deref() == Some(&tag)).any(|entry| {
        let mut lines = definition(entry).lines();
        let right =
            |line: &str| line.starts_with("GRANT ALL ON SCHEMA ") || line.starts_with("GRANT CREATE ON SCHEMA ");
        lines.any(|line| right(line) && line.contains(&format!(" TO {role}")))
    })
}

/// Grants of others than the owner are made in their role, which who restores is a member of, and not in their session,
/// which takes a superuser.
fn without_sessions(definition: &str) -> String {
    let line = |line: &str| match line.strip_prefix("SET SESSION AUTHORIZATION ") {
        Some(role) => format!("SET ROLE {role}"),
        None => line.replacen("RESET SESSION AUTHORIZATION;", "RESET ROLE;", 1),
    };
    definition.split_inclusive('\n').map(line).collect()
}

fn restored(archive: &Archive) -> impl Iterator<Item = &Entry> {
    archive.entries.iter().filter(|entry| !NOT_RESTORED.contains(&entry.kind.as_deref().unwrap_or_default()))
}

fn definition(entry: &Entry) -> &str {
    entry.definition.as_deref().unwrap_or_default()
}

/// Where the entry's SQL names a role: behind TO, FROM, FOR ROLE and SESSION AUTHORIZATION, in a list with commas, and
/// never within parentheses.
fn places(entry: &Entry) -> Vec<Token> {
    let kind = entry.kind.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    if !WITH_ROLES.contains(&kind) {
        return found;
    }
    let sql = definition(entry).as_bytes();
    let mut lexer = Lexer::new(sql, true);
    let (mut depth, mut before, mut in_list) = (0, String::new(), false);
    while let Some(token) = lexer.next() {
        match token.kind {
            Kind::Sign(b'(') => depth += 1,
            Kind::Sign(b')') => depth -= 1,
            Kind::Sign(b',') => {}
            Kind::Sign(_) => in_list = false,
            _ if depth > 0 => {}
            Kind::Word { .. } | Kind::Quoted { .. } => {
                let word = matches!(token.kind, Kind::Word { .. });
                let text = String::from_utf8_lossy(token.text(sql)).into_owned();
                let opens = word
                    && match text.as_str() {
                        "TO" | "FROM" | "AUTHORIZATION" => true,
                        "ROLE" => before == "FOR",
                        "FOR" => kind == USER_MAPPING,
                        _ => false,
                    };
                // Keywords are written in capitals, and names that have some in quotes.
                let is_name = !word || text.bytes().all(|byte| !byte.is_ascii_uppercase());
                if in_list && is_name && !opens {
                    found.push(token);
                } else {
                    in_list = opens;
                }
                before = if word { text } else { String::new() };
            }
            _ => in_list = false,
        }
    }
    found
}

fn name(token: &Token, sql: &str) -> String {
    let text = &sql[token.start..token.end];
    match token.kind {
        Kind::Quoted { .. } => text.replace("\"\"", "\""),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &str, &str)]) -> Archive {
        Archive::of(entries)
    }

    #[test]
    fn roles_are_found_where_roles_stand_and_nowhere_else() {
        let mut dump = archive(&[
            ("TABLE", "acme_owner", "CREATE TABLE public.acme_app (a text DEFAULT 'TO acme_app');"),
            (
                "ACL",
                "acme_owner",
                "REVOKE ALL ON TABLE public.acme_app FROM PUBLIC;\nGRANT SELECT(acme_app) ON TABLE public.acme_app TO acme_app WITH GRANT OPTION;\nSET SESSION AUTHORIZATION acme_app;\nGRANT SELECT ON TABLE public.acme_app TO \"Acme \"\"ro\";\nRESET SESSION AUTHORIZATION;\n",
            ),
            (
                "DEFAULT ACL",
                "acme_owner",
                "ALTER DEFAULT PRIVILEGES FOR ROLE acme_owner IN SCHEMA acme_app GRANT SELECT ON TABLES TO acme_app;",
            ),
            (
                "POLICY",
                "acme_owner",
                "CREATE POLICY acme_app ON public.acme_app FOR SELECT TO acme_app, keep USING ((acme_app = CURRENT_USER));",
            ),
            (
                "USER MAPPING",
                "acme_owner",
                "CREATE USER MAPPING FOR acme_app SERVER acme_app OPTIONS (\n    password 'TO acme_app'\n);",
            ),
            ("DATABASE", "somebody", "CREATE DATABASE acme;"),
        ]);
        let names: Vec<String> = named(&dump).into_iter().collect();
        assert_eq!(names, ["Acme \"ro", "acme_app", "acme_owner", "keep"]);
        let pairs = [("acme_owner", "b_owner"), ("acme_app", "b_app"), ("Acme \"ro", "keeper")];
        let successors = pairs.map(|(old, new)| (old.to_owned(), new.to_owned()));
        rename(&mut dump, &BTreeMap::from(successors));
        let texts: Vec<&str> = dump.entries.iter().map(definition).collect();
        assert_eq!(texts[0], "CREATE TABLE public.acme_app (a text DEFAULT 'TO acme_app');");
        assert_eq!(
            texts[1],
            "REVOKE ALL ON TABLE public.acme_app FROM PUBLIC;\nGRANT SELECT(acme_app) ON TABLE public.acme_app TO \"b_app\" WITH GRANT OPTION;\nSET ROLE \"b_app\";\nGRANT SELECT ON TABLE public.acme_app TO \"keeper\";\nRESET ROLE;\n"
        );
        assert_eq!(
            texts[2],
            "ALTER DEFAULT PRIVILEGES FOR ROLE \"b_owner\" IN SCHEMA acme_app GRANT SELECT ON TABLES TO \"b_app\";"
        );
        assert_eq!(
            texts[3],
            "CREATE POLICY acme_app ON public.acme_app FOR SELECT TO \"b_app\", keep USING ((acme_app = CURRENT_USER));"
        );
        assert_eq!(
            texts[4],
            "CREATE USER MAPPING FOR \"b_app\" SERVER acme_app OPTIONS (\n    password 'TO acme_app'\n);"
        );
        assert!(dump.entries.iter().take(5).all(|entry| entry.owner.as_deref() == Some("b_owner")));
    }
}
