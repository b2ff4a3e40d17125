"""Backup and restore of the database, the versions that it names or the home has, evaluations and bases.

    FOLDER/backup.json                    its content; it is written last, and without it there is no backup
    FOLDER/polytone-<moment>.db           the database (.pgdump of PostgreSQL)
    FOLDER/adapters/<name>/<digest12>/    as in a home; copied once, never changed
    FOLDER/evaluations/<folder>/          likewise
    FOLDER/bases/<id>/                    likewise, unless they are left out

The database is saved first. Versions are written before they are recorded, so every version that it names is there
when the versions are copied after it.
"""
