//! The order in which paths may become valid: each behind what it refers to.

use std::collections::HashMap;

use calve_nix::StorePath;

use crate::PathInfo;

/// Indices of `infos`, references first. Fails with a path that refers to itself through others, which no build makes.
pub fn references_first(infos: &[&PathInfo]) -> Result<Vec<usize>, StorePath> {
    let by_path: HashMap<_, _> = infos.iter().enumerate().map(|(n, info)| (&info.path, n)).collect();
    let mut state = vec![State::New; infos.len()];
    let mut order = Vec::with_capacity(infos.len());
    for start in 0..infos.len() {
        // With the number of references that have been followed.
        let mut stack = vec![(start, 0)];
        while let Some((n, followed)) = stack.last_mut() {
            let info = infos[*n];
            if *followed == 0 {
                if state[*n] == State::Done {
                    stack.pop();
                    continue;
                }
                state[*n] = State::Open;
            }
            let Some(reference) = info.references.get(*followed) else {
                state[*n] = State::Done;
                order.push(*n);
                stack.pop();
                continue;
            };
            *followed += 1;
            match by_path.get(reference) {
                Some(next) if *next != *n => match state[*next] {
                    State::New => stack.push((*next, 0)),
                    State::Open => return Err(reference.clone()),
                    State::Done => {}
                },
                _ => {}
            }
        }
    }
    Ok(order)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

#[cfg(test)]
mod tests {
    use calve_nix::Sha256Hash;

    use super::*;

    fn infos(references: &[&[usize]]) -> Vec<PathInfo> {
        let path = |n: usize| StorePath::from_base_name(&format!("{n:032}-p")).unwrap();
        let info = |(n, references): (usize, &&[usize])| PathInfo {
            path: path(n),
            nar_hash: Sha256Hash::of(b""),
            nar_size: 0,
            references: references.iter().map(|n| path(*n)).collect(),
            deriver: None,
            ca: None,
            signatures: vec![],
        };
        references.iter().enumerate().map(info).collect()
    }

    #[test]
    fn references_come_first_and_circles_are_named() {
        let graph = infos(&[&[1, 2, 9], &[3, 1], &[3], &[], &[0]]);
        let order = references_first(&graph.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(order, [3, 1, 2, 0, 4]);
        let circle = infos(&[&[1], &[2], &[0]]);
        assert!(references_first(&circle.iter().collect::<Vec<_>>()).is_err());
    }
}
